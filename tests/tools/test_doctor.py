"""The doctor: finds what is broken, says what to do, and never faints."""

from __future__ import annotations

import pathlib

import pytest

from plait import native
from plait.errors import CompilerError
from plait.tools import doctor


def finding(name: str) -> doctor.Finding:
    return next(found for found in doctor.examine() if found.name == name)


@pytest.fixture
def without_kernel_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that compiles a model takes seconds and is tried in one test only."""
    monkeypatch.setattr(doctor, "CHECKS", tuple(check for check in doctor.CHECKS if check is not doctor._kernel))


@pytest.mark.usefixtures("without_kernel_check")
def test_it_reports_versions_threads_and_cache() -> None:
    found = {finding.name: finding for finding in doctor.examine()}

    assert "torch" in found["versions"].text
    assert "processors" in found["threads"].text
    assert found["vectors"].text.startswith(("128", "256", "512"))
    assert found["kernel cache"].status in ("ok", "note")


@pytest.mark.usefixtures("without_kernel_check")
def test_a_missing_compiler_is_broken_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CompilerError("C++ compiler: none found")

    monkeypatch.setattr(native, "toolchain", missing)
    found = finding("compiler")

    assert found.is_essential_failure
    assert "Install g++ or clang++" in found.advice


@pytest.mark.usefixtures("without_kernel_check")
def test_a_cache_that_cannot_be_used_is_noted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "file"))
    found = finding("kernel cache")

    assert found.status == "note"
    assert "PLAIT_CACHE_DIR" in found.advice


@pytest.mark.usefixtures("without_kernel_check")
def test_switched_off_flags_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_DYNAMO_FLAGS", "0")

    assert "PLAIT_DYNAMO_FLAGS=0" in finding("dynamo flags").advice


def test_an_old_torch_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.torch, "__version__", "2.4.1+cpu")

    assert doctor._versions().is_essential_failure


def test_a_check_that_crashes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad() -> doctor.Finding:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(doctor, "CHECKS", (bad,))
    (found,) = doctor.examine()

    assert found.is_essential_failure
    assert "ZeroDivisionError: oh" in found.text


def test_a_compiled_kernel_is_compared_with_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model itself for a compiled one the check passes; with another model's output it does not."""
    monkeypatch.setattr(doctor.torch, "compile", lambda model, **options: model)
    assert doctor._kernel().status == "ok"

    monkeypatch.setattr(doctor.torch, "compile", lambda model, **options: lambda *inputs: 2 * model(*inputs))
    found = doctor._kernel()
    assert found.is_essential_failure
    assert "differs from eager" in found.text


def test_the_report_shows_advice(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show([doctor.Finding(name="compiler", status="broken", text="no [g++]", advice="Install it.")])
    text = capsys.readouterr().out

    assert "no [g++]" in text
    assert "Install it." in text
    assert "1 broken" in text
