resource "x" "y" { command = ["gunicorn", "app:app"] }
