"""The machine code of many kernels by one run of the disassembler, which takes 0.3 s to start.

Imports pytest, gatelib.kernels; Triton and its tools when kernels are compiled.
Must not run under TRITON_INTERPRET: the interpreter compiles nothing.
"""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import tempfile
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

import pytest

from gatelib.kernels import launch, report

Code = list[tuple[int, str]]


def instructions(cubin: bytes) -> bytes:
    """The one section of an ELF file that holds a kernel's code."""
    table = struct.unpack_from("<Q", cubin, 40)[0]
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + k * size) for k in range(count)]
    start = sections[names][4]
    (code,) = (s for s in sections if cubin.startswith(b".text.", start + s[0]))
    return cubin[code[4] : code[4] + code[5]]


def disassembled(cubins: Iterable[bytes], arch: int) -> dict[bytes, Code]:
    """What `report.machine_code` says of each; addresses count from the first one's start."""
    from triton.backends.nvidia.compiler import sm_arch_from_capability

    cubins = list(dict.fromkeys(cubins))
    codes = [instructions(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile("wb") as file:
        file.write(b"".join(codes))
        file.flush()
        kind = sm_arch_from_capability(arch).replace("sm_", "SM")
        command = [launch.triton().knobs.nvidia.nvdisasm.path, "--binary", kind, file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ends, found = list(accumulate(map(len, codes))), [Code() for _ in codes]
    for address, line in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(\S[^;]*);", text):
        found[bisect(ends, int(address, 16))].append((int(address, 16), line.strip()))
    return dict(zip(cubins, found, strict=True))


def cases(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The parameters of each test of this file that runs and asks for the fixture."""
    asked = (i for i in request.session.items if request.fixturename in i.fixturenames)
    return [item.callspec.params for item in asked if item.module is request.module]


@contextlib.contextmanager
def read_at_once(reports: Iterable[Callable[[], object]]) -> Iterator[None]:
    """Within, reports of the kernels that these calls compile start no disassembler of their own.

    A call that fails here fails again where its test makes it, and says so there.
    """
    cubins = defaultdict[int, list[bytes]](list)

    def noted(kernel: object, arch: int, dtype: object, fixed: object) -> None:
        cubins[arch].append(report.compiled(kernel, arch, dtype, fixed).asm["cubin"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_report", noted)
        for call in reports:
            with contextlib.suppress(Exception):
                call()
    known, alone = dict[bytes, Code](), report.machine_code
    for arch, own in cubins.items():
        known |= disassembled(own, arch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "machine_code", lambda c: known[c] if c in known else alone(c))
        yield
