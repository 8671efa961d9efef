"""The sandbox holds what it says, dishonest answers fail, and honest ones pass."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from triptych.errors import RewardError
from triptych.records import Conversation, Prompt, user
from triptych.reward.rules import UnitTests
from triptych.reward.sandbox import Confinement, confinement, run_tests

needs_bwrap = pytest.mark.skipif(not confinement().whole, reason=f"the sandbox is not whole: {confinement()}")
attack = pytest.mark.attack("sandbox")


def outcome(code: str, tests: str = "", seconds: float = 20.0, **more: Any) -> str:
    """What came of it: nothing where it passed."""
    verdict = run_tests(code, tests, seconds=seconds, unconfined=True, **more)
    return "" if verdict.passed else verdict.reason


def test_the_rule_runs_the_last_fenced_block() -> None:
    rule: UnitTests = TypeAdapter(UnitTests).validate_python({"rule": "tests", "seconds": 20, "unconfined": True})

    def value(answer: str, tests: str) -> float:
        return rule.value(Conversation(Prompt(user("?"), tests), answer))

    answer = "So:\n```python\ndef double(x):\n    return 2 * x\n```\nThat is all."
    assert value(answer, "assert double(4) == 8") == 1
    assert value(answer, "assert double(4) == 9") == 0
    assert value("def double(x) return", "assert True") == 0


HONEST = {
    "a function": ("""
def add(a, b): return a + b
""", """
assert add(1, 2) == 3
assert add('a', 'b') == 'ab'
"""),
    "a candidate": ("""
def has_close(numbers, threshold):
    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])
""", """
def check(candidate):
    assert candidate([1.0, 2.0, 3.0], 0.5) == False
    assert candidate([1.0, 2.8, 3.0], 0.3) is True
check(has_close)
"""),
    "helper functions": ("""
def _square(x): return x * x
SCALE = 2
def f(x): return SCALE * _square(x)
""", """
assert f(3) == 18 and SCALE == 2 and _square(2) == 4
"""),
    "recursion": ("""
def fact(n): return 1 if n < 2 else n * fact(n - 1)
""", """
assert fact(30) == 265252859812191058636308480000000
"""),
    "huge integers": ("""
def power(n): return 7 ** n
""", """
assert power(9000) == 7 ** 9000
"""),
    "a class": ("""
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self):
        if not self.items: raise IndexError('empty')
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __contains__(self, x): return x in self.items
    def __repr__(self): return f'Stack({self.items})'
""", """
s = Stack()
s.push(1); s.push([2])
assert len(s) == 2 and s.items == [1, [2]] and 1 in s and 5 not in s
assert isinstance(s, Stack) and not isinstance(3, Stack) and repr(s) == 'Stack([1, [2]])' and s
assert s.pop() == [2]
s.limit = 4
assert s.limit == 4
s.pop()
try:
    s.pop()
    assert False
except IndexError as error:
    assert str(error) == 'empty'
"""),
    "operators of a class": ("""
from dataclasses import dataclass
@dataclass(frozen=True)
class Vector:
    x: float
    y: float
    def __add__(self, o): return Vector(self.x + o.x, self.y + o.y)
    def __mul__(self, k): return Vector(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __abs__(self): return (self.x ** 2 + self.y ** 2) ** 0.5
    def __lt__(self, o): return abs(self) < abs(o)
""", """
assert Vector(1, 2) + Vector(3, 4) == Vector(4, 6)
assert Vector(1, 2) != Vector(2, 1)
assert abs(Vector(3, 4)) == 5.0 and (2 * Vector(1, 2)).y == 4 and (Vector(1, 2) * 3).x == 3
assert len({Vector(1, 1), Vector(1, 1)}) == 1 and Vector(0, 1) < Vector(2, 2)
"""),
    "the methods of a Solution": ("""
from typing import List
class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        seen = {}
        for i, n in enumerate(nums):
            if target - n in seen: return [seen[target - n], i]
            seen[n] = i
        return []
""", """
assert Solution().twoSum([2, 7, 11], 9) == [0, 1]
"""),
    "linked nodes": ("""
class Node:
    def __init__(self, value, next=None): self.value, self.next = value, next
def reverse(head):
    last = None
    while head: head.next, last, head = last, head, head.next
    return last
""", """
head = reverse(Node(1, Node(2, Node(3))))
found = []
while head is not None:
    found.append(head.value)
    head = head.next
assert found == [3, 2, 1]
"""),
    "a generator": ("""
def countdown(n):
    while n: yield n; n -= 1
def naturals():
    n = 0
    while True: yield n; n += 1
""", """
import itertools
assert list(countdown(3)) == [3, 2, 1]
assert next(countdown(2)) == 2
assert list(itertools.islice(naturals(), 3)) == [0, 1, 2]
"""),
    "sets, dictionaries and tuples": ("""
from collections import Counter, defaultdict, OrderedDict, deque
def letters(s): return set(s)
def count(s): return Counter(s)
def group(ws):
    d = defaultdict(list)
    for w in ws: d[len(w)].append(w)
    return d
def pairs(d): return tuple(d.items())
def last(n): return deque(range(n), maxlen=2)
""", """
assert letters('aab') == {'a', 'b'}
assert count('aab') == {'a': 2, 'b': 1}
assert group(['a', 'bb', 'c']) == {1: ['a', 'c'], 2: ['bb']}
assert pairs({(1, 2): None}) == (((1, 2), None),)
assert list(last(5)) == [3, 4]
assert isinstance(letters(''), set)
"""),
    "exceptions": ("""
class Poor(ValueError):
    def __init__(self, need):
        super().__init__(f'need {need}')
        self.need = need
def pay(n):
    if n < 0: raise ValueError('negative')
    if n > 5: raise Poor(n)
    return n
""", """
try:
    pay(9)
    assert False
except Poor as error:
    assert error.need == 9 and str(error) == 'need 9'
try:
    pay(9)
except ValueError:
    pass
try:
    pay(-1)
except Poor:
    assert False
except ValueError as e:
    assert e.args == ('negative',)
"""),
    "floats": ("""
import math
def area(r): return math.pi * r ** 2
def none(): return float('nan')
""", """
assert abs(area(2) - 12.566370614359172) < 1e-12
assert math.isclose(area(1), math.pi)
assert none() != none()
assert area(float('inf')) == float('inf')
"""),
    "changes in place": ("""
def bubble(xs):
    xs.sort()
def zero(m):
    m[0][0] = 0
def put(d, s):
    d['k'] = [1]
    s.add(3)
def grow(xs=[]):
    xs.append(1); return xs
""", """
xs = [3, 1, 2]
assert bubble(xs) is None and xs == [1, 2, 3]
row = [5, 6]
m = [row, [7]]
zero(m)
assert m == [[0, 6], [7]] and row == [0, 6]
d, s = {}, {1}
put(d, s)
assert d == {'k': [1]} and s == {1, 3}
assert grow() == [1] and grow() == [1, 1]
"""),
    "imports": (r"""
import itertools, re
from collections import Counter
from fractions import Fraction
from decimal import Decimal
import datetime
def words(s): return re.findall(r'\w+', s)
def perms(n): return list(itertools.permutations(range(n)))
def third(): return Fraction(1, 3)
def price(): return Decimal('1.10')
def day(): return datetime.date(2024, 2, 29)
""", """
import datetime
assert words('a b') == ['a', 'b'] and len(perms(3)) == 6
assert third() == Fraction(1, 3)
assert price() == Decimal('1.10') and day() == datetime.date(2024, 2, 29) and Counter('aa') == {'a': 2}
"""),
    "functions of the tests": ("""
from functools import wraps
def compose(f, g): return lambda x: f(g(x))
def memoize(f):
    cache = {}
    @wraps(f)
    def inner(n):
        if n not in cache: cache[n] = f(n)
        return cache[n]
    return inner
def total(it): return sum(it)
def apply(kind, x): return kind(x)
""", """
assert compose(lambda x: x + 1, len)([1, 2]) == 3
calls = []
@memoize
def fib(n):
    calls.append(n)
    return n if n < 2 else fib(n - 1) + fib(n - 2)
assert fib(15) == 610 and len(calls) == 16
assert total(x for x in [1, 2]) == 3 and apply(int, '4') == 4
"""),
    "named tuples and enums": ("""
from typing import NamedTuple
from enum import Enum
class Point(NamedTuple):
    x: int
    y: int = 0
    def norm(self): return self.x + self.y
class Color(Enum):
    RED = 1
    BLUE = 2
def flip(c):
    return Color.BLUE if c is Color.RED else Color.RED
""", """
p = Point(1, 2)
assert p == (1, 2) and p.y == 2 and p.norm() == 3 and p == Point(1, 2)
assert flip(Color.RED) == Color.BLUE and flip(Color.BLUE) is Color.RED and Color.RED.value == 1
"""),
    "what is printed": ("""
def greet(name):
    print('Hello,', name)
""", r"""
import io, contextlib
out = io.StringIO()
with contextlib.redirect_stdout(out):
    greet('you')
assert out.getvalue() == 'Hello, you\n'
"""),
    "unittest": ("""
def div(a, b): return a / b
class Box: pass
""", """
import unittest
from answer import div
class TestDiv(unittest.TestCase):
    def test_it(self):
        self.assertAlmostEqual(div(1, 3), 0.3333333333)
        self.assertIsInstance(Box(), Box)
    def test_zero(self):
        with self.assertRaises(ZeroDivisionError):
            div(1, 0)
if __name__ == '__main__':
    unittest.main()
"""),
    "coroutines and context managers": ("""
import asyncio
async def double(x):
    await asyncio.sleep(0)
    return 2 * x
class Log:
    def __enter__(self):
        self.lines = ['in']; return self
    def __exit__(self, *e): self.lines.append('out')
""", """
import asyncio
assert asyncio.run(double(2)) == 4
with Log() as log:
    assert log.lines == ['in']
assert log.lines == ['in', 'out']
"""),
    "threads": ("""
import threading
def work(n):
    found = []
    ts = [threading.Thread(target=found.append, args=(i,)) for i in range(n)]
    for t in ts: t.start()
    for t in ts: t.join()
    return sorted(found)
""", """
assert work(8) == list(range(8))
"""),
    "a file of its own": ("""
def save(text):
    with open('own', 'w') as f: f.write(text)
    with open('own') as f: return f.read()
""", """
assert save('x' * 1000) == 'x' * 1000
"""),
    "objects of the tests": ("""
def total(node):
    return 0 if node is None else node.value + total(node.next)
def double(node):
    while node: node.value, node = 2 * node.value, node.next
def last(node): return last(node.next) if node.next is not None else node
""", """
class Node:
    def __init__(self, value, next=None): self.value, self.next = value, next
tail = Node(2)
head = Node(1, tail)
assert total(head) == 3 and last(head) is tail
double(head)
assert (head.value, head.next.value) == (2, 4)
"""),
    "a global that changes": ("""
count = 0
def step():
    global count
    count += 1
""", """
assert count == 0
step()
assert count == 1
"""),
    "no environment": ("""
import os
def names(): return list(os.environ)
""", """
assert 'SECRET_KEY' not in names()
"""),
}
"""Answers that are right, with their tests."""


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_answer_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "value")
    assert outcome(*HONEST[name]) == ""


ADD = "def add(a, b): return a + b + 1\n"
CHECKS = (
    "assert add(1, 2) == 3\nassert add(-1, 1) == 0",
    """
import unittest
class T(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(1, 2), 3)
        self.assertAlmostEqual(add(0.5, 0.5), 1.0)
unittest.main()
""",
)
"""The same in the two ways in which tests are written; `add` as above fails both."""

NEARLY = "def check(f):\n    assert abs(f(1, 2) - 3) < 1e-9 and f(2, 2) in [4] and 4 in [f(2, 2)]\ncheck(add)"
ALSO = {
    "equals everything": NEARLY,
    "is a class that equals everything": NEARLY,
    "returns a number whose class equals everything": NEARLY,
    "returns unittest.mock.ANY": NEARLY,
    "is a mock": NEARLY,
    "ends the loops of the tests": "assert all(map(lambda case: add(*case[0]) == case[1], [((1, 2), 3), ((2, 2), 4)]))",
    "replaces what the tests imported": "from math import isclose\nfrom answer import *\nassert isclose(add(1, 2), 3)",
    "divides by what is expected": "assert add(1, 2) / 3 == 1 and add(2, 2) % 4 == 0",
    "is of every type of exception":
        "try: add(1)\nexcept TypeError: pass\ntry: add(None, 1)\nexcept TypeError: pass\n"
        "try: add(1, 2)\nexcept TypeError: pass\nexcept Exception: raise AssertionError",
}
"""Tests that such an answer could pass where it fails the others."""

ALWAYS = (
    "class Always:\n    def __init__(self, *a): pass\n"
    + "".join(
        f"    def __{name}__(self, *a): return True\n"
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains", "bool", "instancecheck")
    )
    + "".join(
        f"    def __{name}__(self, *a): return 0\n"
        for name in ("sub", "rsub", "abs", "round", "index", "int", "xor", "rxor")
    )
    + "    def __float__(self): return 0.0\n    def __hash__(self): return 0\n"
    "    def __iter__(self): return iter([self])\n    def __len__(self): return 1\n"
    "    def __getitem__(self, i): return self\n"
)

DISHONEST = {
    "patches exec": ADD + """
import builtins
builtins.exec = lambda *a, **k: None
""",
    "patches compile": ADD + """
import builtins
builtins.compile = lambda *a, **k: (lambda: None).__code__
""",
    "leaves with 0": ADD + """
import sys
sys.exit(0)
""",
    "leaves at once with 0": ADD + """
import os
os._exit(0)
""",
    "leaves when it is called": """
import os, sys
def add(a, b): os._exit(0)
""",
    "kills itself": ADD + """
import os, signal
os.kill(os.getpid(), 9)
""",
    "equals everything": ALWAYS + "def add(a, b): return Always()",
    "is a class that equals everything": ALWAYS + "add = Always",
    "returns a number whose class equals everything": """
class N(int):
    __eq__ = lambda s, o: True
    __ne__ = lambda s, o: False
    __hash__ = int.__hash__
    __sub__ = __rsub__ = __abs__ = lambda s, *o: 0
def add(a, b): return N(77)
""",
    "returns unittest.mock.ANY": """
from unittest.mock import ANY
def add(a, b): return ANY
""",
    "is a mock": """
from unittest.mock import MagicMock
add = MagicMock(return_value=MagicMock())
""",
    "patches unittest": ADD + """
import unittest
for n in dir(unittest.TestCase):
    if n.startswith('assert'):
        setattr(unittest.TestCase, n, lambda *a, **k: None)
unittest.TestCase.run = lambda *a, **k: None
""",
    "claims that every test is skipped": """
import unittest
def add(a, b): raise unittest.SkipTest('no')
""",
    "replaces AssertionError and the built-in functions": ADD + """
import builtins
class AssertionError(BaseException): pass
def abs(x): return 0
all = any = lambda *a: True
builtins.abs = abs
builtins.AssertionError = Exception
builtins.__build_class__ = lambda *a, **k: object
""",
    "defines a module called unittest": ADD + """
class unittest:
    class TestCase: pass
    main = staticmethod(lambda: None)
""",
    "looks at the frames for what is expected": """
import sys
def add(a, b):
    f = sys._getframe()
    while f:
        for v in [*f.f_code.co_consts, *f.f_locals.values()]:
            if v in (3, 4) and v != a and v != b: return v
        f = f.f_back
    return 99
""",
    "patches the frames of the caller": """
import sys, ctypes
def add(a, b):
    f = sys._getframe()
    while f:
        f.f_globals.update(AssertionError=None, check=lambda *a: None, verdict=None, run=lambda *a: None)
        f.f_builtins['abs'] = lambda x: 0
        f = f.f_back
    return 99
""",
    "searches the memory for the tests": r"""
import gc, re
def add(a, b):
    for o in gc.get_objects():
        if isinstance(o, dict):
            for v in list(o.values()):
                if isinstance(v, str) and 'add(1, 2)' in v and 'secret' not in v:
                    return int(re.search(r'add\(1, 2\)\D+(\d+)', v)[1])
    return 99
""",
    "searches files and descriptors for the tests": """
import os
def add(a, b):
    for n in range(64):
        try:
            text = os.pread(n, 9999, 0)
            if b'assert' in text: return a + b
        except OSError: pass
    for process in os.listdir('/proc') if os.path.exists('/proc') else ():
        for name in ('cmdline', 'environ'):
            try:
                with open(f'/proc/{process}/{name}', 'rb') as file:
                    if b'add(' in file.read(): return a + b
            except OSError: pass
    return 99
""",
    "writes the report at its end": ADD + """
import atexit, os
def report():
    for n in range(64):
        try: os.write(n, b'null')
        except OSError: pass
atexit.register(report)
report()
""",
    "writes replies of its own": ADD + r"""
import os
for n in range(3, 64):
    try: os.write(n, b'["reply","",null,null]\n' * 99)
    except OSError: pass
""",
    "says a value of every type": ADD + r"""
import os
for n in range(3, 64):
    try: os.write(n, b'["reply","",["copied","unittest.mock._ANY",[]],null]\n' * 9)
    except OSError: pass
""",
    "calls into the judge": ADD + r"""
import os
for n in range(3, 64):
    try: os.write(n, b'["ask","","call",["tuple",[["called","os","_exit"],["tuple",[0]],["dict",[]]]]]\n')
    except OSError: pass
""",
    "patches its own harness": ADD + """
import sys
for m in list(sys.modules.values()):
    for n in ('become', 'confine', 'Channel', 'OPERATIONS'):
        if hasattr(m, n): setattr(m, n, None)
""",
    "replaces the number in the interpreter": """
import ctypes
def add(a, b):
    ctypes.memmove(id(3) + 24, id(99) + 24, 4)
    ctypes.memmove(id(4) + 24, id(99) + 24, 4)
    ctypes.memmove(id(0) + 24, id(99) + 24, 4)
    return 99
""",
    "says too much": "def add(a, b): return 'x' * (1 << 24)",
    "nests without end": """
def add(a, b):
    x = []
    for _ in range(100_000): x = [x]
    return x
""",
    "is of every type of exception": """
class Every(ValueError, TypeError, KeyError): pass
def add(a, b): raise Every
""",
    "replaces what the tests imported": ADD + """
isclose = lambda *a, **k: True
""",
    "divides by what is expected": """
class One:
    __truediv__ = __floordiv__ = lambda self, other: 1
    __mod__ = lambda self, other: 0
def add(a, b): return One()
""",
    "never ends": """
def add(a, b):
    while True: yield 3
""",
    "ends the loops of the tests": "def add(a, b): raise StopIteration",
}
"""Answers that do not add, and try to pass."""


@attack
@pytest.mark.parametrize("name", DISHONEST)
def test_a_dishonest_answer_fails(name: str) -> None:
    for tests in (*CHECKS, *([ALSO[name]] if name in ALSO else [])):
        assert outcome(DISHONEST[name], tests) != "", tests


def test_the_checks_of_the_dishonest_pass_an_honest_answer() -> None:
    for tests in (*CHECKS, *ALSO.values()):
        assert outcome("def add(a, b): return a + b", tests) == ""


@attack
def test_the_answer_cannot_see_what_is_expected_of_it() -> None:
    code = (
        "seen = []\nclass Spy:\n    def __getattribute__(self, n): seen.append(n); return lambda *a: seen.append(a)\n"
        + "".join(
            f"    def __{n}__(self, *a): seen.append(a); return NotImplemented\n"
            for n in ("eq", "ne", "lt", "gt", "le", "ge", "sub", "rsub", "contains", "xor")
        )
        + "    def __iter__(self): return iter([1])\ndef f(): return Spy()"
    )
    tests = """
from operator import contains, eq, ge, gt, le, lt, ne, sub, xor
for compare in (eq, ne, lt, gt, le, ge, sub, contains, xor, lambda a, b: a in [b], lambda a, b: b - a):
    try: compare(f(), 123456)
    except TypeError: pass
assert '123456' not in str(seen), seen
"""
    assert outcome(code, tests) == ""


@attack
@needs_bwrap
@pytest.mark.parametrize("action", [
    "open({path!r}).read()", "open({path!r}, 'w')", "os.remove({path!r})", "os.chmod({path!r}, 0o777)",
    "os.utime({path!r}, (0, 0))", "os.setxattr({path!r}, 'user.x', b'1')", "os.chown({path!r}, 1, 1)",
    "os.rename({path!r}, '/tmp/x')", "os.link({path!r}, '/tmp/x')", "os.truncate({path!r}, 0)",
    "os.listdir({folder!r})",
    "os.chmod({library!r}, 0o777)", "os.utime({library!r}, (0, 0))", "os.setxattr({library!r}, 'user.x', b'1')",
    "open({library!r}, 'a')", "os.mkdir('/usr/x')", "os.mkdir('/x')", "os.mkdir('/dev/x')", "os.listdir('/proc')",
])
def test_files_outside_cannot_be_read_or_changed(action: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    before = secret.stat()
    library = Path(os.__file__)
    library_before = library.stat()
    action = action.format(path=str(secret), folder=str(tmp_path), library=str(library))
    assert outcome(f"import os\n{action}").startswith(("FileNotFoundError", "PermissionError", "OSError"))
    assert secret.stat() == before or secret.stat().st_mtime_ns == before.st_mtime_ns
    assert (secret.read_text(), secret.stat().st_mode) == ("key", before.st_mode)
    assert (library.stat().st_mode, library.stat().st_mtime_ns) == (library_before.st_mode, library_before.st_mtime_ns)


@attack
@needs_bwrap
@pytest.mark.parametrize("start", [
    "os.fork()", "os.posix_spawn('/usr/bin/env', ['env'], {})", "subprocess.run(['/usr/bin/env'])",
    "multiprocessing.get_context('fork').Process(target=print).start()",
    "ctypes.CDLL(None).syscall(57) >= 0 or 1 / 0", "ctypes.CDLL(None).syscall(435, bytes(88), 88) >= 0 or 1 / 0",
    "ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0 or 1 / 0",
])
def test_no_other_process_can_be_started(start: str) -> None:
    if "syscall" in start and os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    reason = outcome(f"import os, subprocess, multiprocessing, ctypes\nfor _ in range(400):\n    {start}")
    assert reason.startswith(("PermissionError", "BlockingIOError", "ZeroDivisionError")), reason


def processes_with(marker: bytes) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "comm").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if marker in text and int(folder.name) != os.getpid():
            found.append(folder.name)
    return found


@attack
@needs_bwrap
@pytest.mark.parametrize("tests", ["", "assert False", "f()"])
def test_nothing_goes_on_after_the_verdict(tests: str) -> None:
    code = (
        "import ctypes, os, threading, signal, sys\nctypes.CDLL(None).prctl(15, b'outlives-me', 0, 0, 0)\n"
        "ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n"
        "for n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "try: os.setsid()\nexcept OSError: pass\n"
        "def work():\n    while True: pass\nthreading.Thread(target=work).start()\n"
        "def f():\n    while True: pass"
    )
    assert bool(outcome(code, tests, 2.0)) == bool(tests)
    end = time.monotonic() + 2
    while processes_with(b"outlives-me") and time.monotonic() < end:
        time.sleep(0.01)
    assert processes_with(b"outlives-me") == []


@attack
def test_time_is_limited() -> None:
    began = time.monotonic()
    assert "longer than" in outcome("while True: pass", seconds=1.0)
    assert "longer than" in outcome("import time\ndef f(): time.sleep(60)", "f()", seconds=1.0)
    assert time.monotonic() - began < 10


@attack
def test_memory_is_limited() -> None:
    assert "MemoryError" in outcome("x = bytearray(1 << 30)", mebibytes=256)


@attack
@needs_bwrap
@pytest.mark.parametrize("hoard", {
    "memory files": "for _ in range(60):\n    f = os.memfd_create('x'); os.write(f, bytes(1 << 24))",
    "shared memory": "c = ctypes.CDLL(None)\nfor _ in range(60):\n    c.shmget(0, 1 << 24, 0o1600) >= 0 or 1 / 0",
    "message queues": "c = ctypes.CDLL(None)\nfor _ in range(60):\n    c.msgget(0, 0o1600) >= 0 or 1 / 0",
    "files": "for n in range(9999): open(f'/tmp/{n}', 'wb').write(bytes(1 << 22))",
    "files elsewhere": "for n in range(9999): open(f'/dev/shm/{n}', 'wb').write(bytes(1 << 22))",
    "empty files": "for n in range(99_999): open(f'/tmp/{n}', 'w').close()",
    "larger pipes": "import fcntl\nfor _ in range(30): fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)",
    "many pipes": "x = [os.pipe() for _ in range(99)]",
    "threads":
        "import threading, time\nfor _ in range(999):\n"
        "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
}.items(), ids=lambda each: each[0])
def test_memory_and_disk_are_limited_in_sum(hoard: tuple[str, str]) -> None:
    reason = outcome(f"import os, ctypes\n{hoard[1]}", mebibytes=512)
    assert reason.startswith((
        "PermissionError", "OSError", "FileNotFoundError", "AttributeError", "MemoryError", "RuntimeError",
        "ZeroDivisionError",
    )), reason


@attack
@needs_bwrap
def test_memory_in_sum_is_not_what_400_forks_would_take() -> None:
    code = """
import os
held = []
for _ in range(400):
    try:
        if os.fork() == 0:
            x = bytearray(b"1") * (200 << 20)
            while True: pass
    except OSError: pass
    try: held.append(bytearray(b"1") * (8 << 20))
    except MemoryError: pass
def held_mebibytes(): return 8 * len(held)
"""
    assert outcome(code, "assert 64 < held_mebibytes() < 256", mebibytes=256) == ""


@attack
@needs_bwrap
def test_the_network_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reason = outcome(f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)")
    assert "Error" in reason


@attack
@needs_bwrap
@pytest.mark.parametrize("gain", [
    "os.setuid(0)", "os.setgid(0)", "os.chroot('/usr')", "socket.sethostname('x')",
    "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "resource.setrlimit(resource.RLIMIT_NPROC, (999, 999))",
    "ctypes.CDLL(None).unshare(0x10000000) == 0 or 1 / 0",
    "ctypes.CDLL(None).mount(None, b'/tmp', None, 32, b'size=1g') == 0 or 1 / 0",
    "ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 or 1 / 0",
    "os.open('/dev/mem', os.O_RDWR)", "os.mknod('/tmp/x', 0o20666, 0x101)",
])
def test_no_privilege_can_be_had(gain: str) -> None:
    reason = outcome(f"import os, socket, resource, ctypes\n{gain}")
    refused = ("PermissionError", "ValueError", "FileNotFoundError", "ZeroDivisionError", "OSError")
    assert reason.startswith(refused), reason


def test_several_run_at_a_time() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: outcome(f"def f(): return {n}", f"assert f() == {n}", 60.0), range(16)))
    assert found == [""] * 16


@pytest.mark.parametrize("fails", [False, True], ids=["no bwrap", "a bwrap that fails"])
def test_without_bubblewrap_nothing_runs_unless_it_is_said(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755 if fails else 0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    confinement.cache_clear()
    try:
        with pytest.raises(RewardError, match=r"(?s)bubblewrap.*unconfined: true"):
            run_tests("x = 1", "assert x == 1")
        assert run_tests("x = 1", "assert x == 1", seconds=20, unconfined=True).passed
        assert not run_tests("x = 1", "assert x == 2", seconds=20, unconfined=True).passed
    finally:
        confinement.cache_clear()


def test_confinement_says_what_is_missing() -> None:
    assert Confinement().whole
    assert str(Confinement("no bwrap")) == "no bwrap"
