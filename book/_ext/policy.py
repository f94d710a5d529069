"""The content policy under which the workshop's page works: what a host may send as a header.

Imports the standard library. Must not import gatelib.

The theme's pages hold a few short inline scripts, and two buttons with a handler. Each is let in by
its hash, so that no other is; `unsafe-hashes` says that handlers are meant too.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape

INLINE = re.compile(r"<script(?![^>]*\b(?:src|type)=)[^>]*>(.*?)</script>", re.DOTALL)
HANDLER = re.compile(r'<\w+\b[^>]* on[a-z]+="([^"]*)"')
RULES = {
    "default-src": "'none'",
    "script-src": "'self' blob: 'wasm-unsafe-eval' 'unsafe-hashes'",
    "worker-src": "blob:",
    "style-src": "'self' 'unsafe-inline'",  # the places of KaTeX's boxes are styles of elements
    "font-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'self'",
}


def hashes(html: str) -> list[str]:
    """What lets in the inline scripts and the handlers of a page, once each."""
    texts = (*INLINE.findall(html), *map(unescape, HANDLER.findall(html)))
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in dict.fromkeys(digests)]


def of_page(html: str) -> str:
    """The header `Content-Security-Policy` for a page."""
    rules = RULES | {"script-src": " ".join([RULES["script-src"], *hashes(html)])}
    return "; ".join(f"{name} {what}" for name, what in rules.items())


def in_words() -> str:
    """The policy for a reader, a rule a line."""
    rules = RULES | {"script-src": f"{RULES['script-src']} 'sha256-…'"}
    return ";\n".join(f"{name} {what}" for name, what in rules.items())
