"""Licences of the pinned packages: a new one must be reviewed."""

import pytest
from licences import PAGE, REASONS, licence, page, permissive, pinned, rows


@pytest.mark.parametrize("package", pinned())
def test_each_pinned_package_is_listed_and_its_licence_permissive_or_reasoned(package):
    text = rows().get(package, "not listed: python tests/licences.py")
    assert permissive(text) or package in REASONS, f"{package}: {text}"


def test_the_page_says_what_the_installed_packages_say():
    assert PAGE.read_text("utf-8") == page(), "write it again: python tests/licences.py"
    assert {licence("pytest"), licence("no-such-package")} == {"MIT", None}
    assert set(REASONS) <= set(pinned())


@pytest.mark.parametrize(
    "text, allowed",
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("BSD-3-Clause AND Apache-2.0 WITH LLVM-exception", True),
        ("MIT AND GPL-3.0-only", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("MPL-2.0", False),
        ("SSPL-1.0", False),
        ("Apache-2.0 WITH Commons-Clause", False),
        ("not said", False),
        ("", False),
    ],
)
def test_what_counts_as_permissive(text, allowed):
    assert permissive(text) is allowed
