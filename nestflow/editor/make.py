"""Writes what comes from the language itself: the files of the VS Code extension, the reference in docs/, and the
picture of HOPE in the README.

    python -m nestflow.editor.make

Run it after a change of the vocabulary, of HOPE or of how graphs are drawn; a test says when it is due.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nestflow._version import __version__
from nestflow.editor.grammar import grammar
from nestflow.editor.reference import pages
from nestflow.editor.snippets import snippets

FOLDER = Path(__file__).parent / "vscode"
DOCS = Path(__file__).resolve().parents[2] / "docs"  # of a checkout; an installed package has none


def package() -> dict[str, Any]:
    """The manifest of the extension: it has no code, so no build and no dependencies."""
    return {
        "name": "nestflow",
        "displayName": "nestflow",
        "description": "Colours, snippets and bracket rules for nestflow specs (.nl).",
        "version": __version__,
        "publisher": "nestflow",
        "license": "Apache-2.0",
        "engines": {"vscode": "^1.75.0"},
        "categories": ["Programming Languages", "Snippets"],
        "contributes": {
            "languages": [
                {
                    "id": "nestflow",
                    "aliases": ["nestflow", "nl"],
                    "extensions": [".nl"],
                    "firstLine": r"^\s*nestflow\s+1\b",
                    "configuration": "./language-configuration.json",
                }
            ],
            "grammars": [
                {"language": "nestflow", "scopeName": "source.nestflow", "path": "./syntaxes/nestflow.tmLanguage.json"}
            ],
            "snippets": [{"language": "nestflow", "path": "./snippets/nestflow.json"}],
        },
    }


def configuration() -> dict[str, Any]:
    """Brackets, comments and indentation, as the printer of the language writes them."""
    pairs = [["{", "}"], ["[", "]"], ["(", ")"]]
    return {
        "comments": {"lineComment": "#"},
        "brackets": pairs,
        "autoClosingPairs": [
            *({"open": a, "close": b, "notIn": ["string", "comment"]} for a, b in pairs),
            {"open": '"', "close": '"', "notIn": ["string", "comment"]},
        ],
        "surroundingPairs": [*pairs, ['"', '"']],
        "wordPattern": {"pattern": r"[\p{L}_](?:[\p{L}\p{N}_]|\{\w+\})*", "flags": "u"},
        "indentationRules": {
            "increaseIndentPattern": r"^[^#\"]*[{(\[][^})\]\"#]*(#.*)?$",
            "decreaseIndentPattern": r"^\s*[})\]]",
        },
        "onEnterRules": [
            {"beforeText": r"^\s*##.*\S", "action": {"indent": "none", "appendText": "## "}},
        ],
    }


def files() -> dict[str, str]:
    """The text of each file by its name in the folder."""
    made = {
        "package.json": package(),
        "language-configuration.json": configuration(),
        "syntaxes/nestflow.tmLanguage.json": grammar(),
        "snippets/nestflow.json": snippets(),
    }
    return {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in made.items()}


def picture() -> str:
    """What `nestflow view hope -o docs/hope.svg` draws."""
    import nestflow
    from nestflow.view import render

    return render(nestflow.check("hope"), "svg")


def main() -> None:
    """Write what differs."""
    made = {FOLDER / name: text for name, text in files().items()}
    if DOCS.is_dir():
        made |= {DOCS / "reference" / name: text for name, text in pages().items()}
        made[DOCS / "hope.svg"] = picture()
    for file, text in made.items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"wrote {file.name}")


if __name__ == "__main__":
    main()
