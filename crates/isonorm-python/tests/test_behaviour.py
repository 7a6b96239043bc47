"""Threads, leaks, documentation, and the stub."""

import doctest
import gc
import inspect
import os
import signal
import threading
import time
import tracemalloc

import numpy as np
import pytest

import isonorm
from conftest import assert_same_bits, draw

FUNCTIONS = [name for name in isonorm.__all__ if name.islower() and not name.startswith("_")]


def test_python_threads_have_the_same_bits():
    x, dy, weight = draw((300, 700), np.float32), draw((300, 700), np.float32, 1), draw(700, np.float32, 2)
    expected = isonorm.layer_norm(x, weight), *isonorm.layer_norm_backward(dy, x, weight)
    failures = []

    def work():
        try:
            for _ in range(20):
                found = isonorm.layer_norm(x, weight), *isonorm.layer_norm_backward(dy, x, weight)
                for a, b in zip(found, expected, strict=True):
                    assert_same_bits(a, b)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures


def test_a_partial_in_use_is_refused_to_another_thread_or_taken_whole():
    x = draw((64, 256), np.float32)
    partial, refused = isonorm.Partial(np.float32, 256), []

    def work():
        for _ in range(50):
            try:
                partial.push(x, x)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(partial) + 64 * len(refused) == 4 * 50 * 64
    assert set(refused) <= {"Already borrowed", "Already mutably borrowed"}


def test_one_thread_and_all_have_the_same_bits():
    x = draw((1000, 700), np.float32)
    for norm in (isonorm.rms_norm, isonorm.layer_norm):
        assert_same_bits(norm(x, threads=1), norm(x))
    assert_same_bits(isonorm.batch_norm(x, training=True, threads=1), isonorm.batch_norm(x, training=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    x = draw((2000, 700), np.float32)
    expected = isonorm.rms_norm(x)  # the pool of this process runs now
    child = os.fork()
    if child == 0:
        same = isonorm.rms_norm(x).tobytes() == expected.tobytes()
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(int(isonorm.rms_norm(x).tobytes() != expected.tobytes()))
        os._exit(int(not same) + os.waitpid(grandchild, 0)[1])
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the forked process waits for threads that it does not have")


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def every_call(x, channels, out):
    isonorm.rms_norm(x, x[0], axis=-1, out=out)
    isonorm.layer_norm(x.T, axis=0)
    _, stats = isonorm.layer_norm(x, return_stats=True)
    isonorm.layer_norm_backward(x, x, stats=stats, mask=np.ones(len(x), bool), accumulate=isonorm.Partial("f4", 64))
    isonorm.Partial.from_bytes(isonorm.Partial("f4", 100_000).to_bytes())
    isonorm.add_rms_norm(x, x)
    isonorm.add_layer_norm(x, x, return_stats=True)
    isonorm.add_rms_norm_backward(x, x)
    isonorm.batch_norm(channels, training=True, return_stats=True)[1].mean.sum()
    isonorm.group_norm_backward(channels, channels, 2)
    with pytest.raises(ValueError):
        isonorm.rms_norm(x, x[0, :3], out=out)
    with pytest.raises(TypeError):
        isonorm.rms_norm("text")


@pytest.mark.skipif(not hasattr(tracemalloc, "start"), reason="counts memory")
def test_nothing_leaks():
    x, channels = draw((256, 64), np.float32), draw((8, 4, 64), np.float32)
    out = np.empty_like(x)

    def rounds(count):
        for _ in range(count):
            every_call(x, channels, out)
        gc.collect()

    rounds(50)
    tracemalloc.start()
    before, held = resident(), tracemalloc.get_traced_memory()[0]
    rounds(300)
    grown, held = resident() - before, tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    # One leaked array of a round would be 300 x 64 KiB.
    assert grown < 4 << 20, f"the process has grown by {grown} bytes"
    assert held < 100_000, f"Python holds {held} bytes more"


def test_the_examples_of_the_documentation():
    failed = attempted = 0
    for name, item in [("isonorm", isonorm), *((name, getattr(isonorm, name)) for name in isonorm.__all__)]:
        for test in doctest.DocTestFinder().find(item, name, module=False):
            result = doctest.DocTestRunner().run(test)
            failed, attempted = failed + result.failed, attempted + result.attempted
    assert failed == 0 and attempted > 50


@pytest.mark.parametrize("name", FUNCTIONS)
def test_documentation_names_every_parameter(name):
    function = getattr(isonorm, name)
    documentation = inspect.getdoc(function)
    papers = () if name.startswith("audit") else ("References",)
    for section in ("Parameters", "Returns", "Raises", *papers, "Examples"):
        assert f"\n{section}\n---" in documentation, section
    described = documentation.split("Returns\n")[0]
    for parameter in inspect.signature(function).parameters:
        assert parameter in described, parameter


def test_the_stub_is_that_of_the_module():
    api = pytest.importorskip("mypy.api", reason="mypy compares the stub with the module")
    assert api is not None
    from mypy import stubtest

    assert stubtest.test_stubs(stubtest.parse_options(["isonorm._isonorm"])) == 0
