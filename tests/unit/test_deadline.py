"""What is said of the requests that the deadline has cut."""

from __future__ import annotations

from gracefulworker.workers.deadline import KINDS, PATH_MAX, Cut, name, printable

HERE = (("app.py", 7, "view"), ("<string>", 1, "inner"))
SHOWN = '  File "app.py", line 7, in view\n  File "<string>", line 1, in inner'


def cut(request="GET /", age=1.0, stack=HERE, ending="503"):
    return Cut(ending, request, age, stack)


def test_one_is_named_as_itself():
    assert list(name([cut("GET /a", 1.25)])) == [
        f"cut at the deadline (503): GET /a after 1.2 s, at:\n{SHOWN}"
    ]
    assert next(name([cut(stack=())])).endswith("at:\n  (it has ended meanwhile)")


def test_those_that_are_alike_are_named_together_and_the_most_frequent_first():
    cuts = [cut("GET /b"), cut("GET /a", 3.0), cut("GET /a", 2.0), cut("GET /b", ending="closed")]
    assert list(name(cuts)) == [
        f"cut at the deadline (503): 2 times GET /a after 2.0 to 3.0 s, at:\n{SHOWN}",
        f"cut at the deadline (503): GET /b after 1.0 s, at:\n{SHOWN}",
        f"cut at the deadline (closed): GET /b after 1.0 s, at:\n{SHOWN}",
    ]


def test_those_that_stand_elsewhere_are_not_alike():
    assert len(list(name([cut(stack=HERE[:1]), cut(stack=HERE)]))) == 2


def test_there_is_a_bound_to_what_is_said():
    cuts = [cut(f"GET /{number}") for number in range(KINDS + 7)]
    *named, last = name([*cuts, cuts[-1]])
    assert len(named) == KINDS
    assert "2 times GET /26" in named[0]
    assert last == "cut at the deadline: 7 more, which are not named here"


def test_nothing_is_said_of_nothing():
    assert list(name([])) == []


def test_what_a_client_sends_is_printable_and_bounded():
    assert printable("/a b/\x1b[2J\0\x9b\n") == r"/a b/\x1b[2J\x00\x9b\n"
    assert printable("/h\xe9") == "/h\xe9"
    assert printable("x" * PATH_MAX) == "x" * PATH_MAX
    assert printable("x" * PATH_MAX + "y") == "x" * PATH_MAX + "..."
