"""What both the arbiter and its workers use."""
