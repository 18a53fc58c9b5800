"""The page /docs: the interface's OpenAPI description as plain HTML, without script and without foreign assets."""

import json
from collections.abc import Mapping
from typing import Any

from maskedclip.html import escape


def reference(openapi: Mapping[str, Any]) -> str:
    """A page from an OpenAPI document."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    links = "".join(
        f'<li><a href="#{escape(operation["operationId"])}">{method} {escape(path)}</a></li>'
        for method, path, operation in operations
    )
    parts = "\n".join(_operation(method, path, operation, openapi) for method, path, operation in operations)
    title = escape(openapi["info"]["title"])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}: interface</title><link rel="stylesheet" href="/page/style.css">'
        '<link rel="icon" href="/page/icon.svg" type="image/svg+xml"></head>\n'
        f'<body class="reference"><header><h1>{title}: interface</h1>'
        f"<p>{escape(openapi['info'].get('description', ''))} Version {escape(openapi['info']['version'])}. "
        'For programs: <a href="/openapi.json">openapi.json</a>. <a href="/">The page</a>.</p>'
        "<p>Where the server has a key, send it as <code>X-API-Key: KEY</code> or "
        "<code>Authorization: Bearer KEY</code>. Errors are "
        '<code>{"error": {"code": …, "message": …, "request": …}}</code>.</p>'
        f'<nav aria-label="Addresses"><ul>{links}</ul></nav></header><main>{parts}</main></body></html>\n'
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> str:
    fields = [
        (entry["name"], entry.get("required", False), entry["schema"], entry.get("description", ""))
        for entry in operation.get("parameters", [])
    ]
    form = False
    for content in operation.get("requestBody", {}).get("content", {}).values():
        body = _resolved(content["schema"], openapi)
        form = True
        fields += [
            (name, name in body.get("required", []), schema, schema.get("description", ""))
            for name, schema in body.get("properties", {}).items()
        ]
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{escape(_type(schema))}</td>'
        f"<td>{'required' if required else escape(_default(schema))}</td><td>{escape(text)}</td></tr>"
        for name, required, schema, text in fields
    )
    table = (
        f'<div class="scroll"><table><caption>{"Form fields" if form else "Parameters"}</caption><thead><tr>'
        '<th scope="col">Name</th><th scope="col">Type</th><th scope="col">Default</th><th scope="col">Meaning</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )
    statuses = "".join(
        f"<li><code>{escape(status)}</code> {escape(answer.get('description', ''))}</li>"
        for status, answer in sorted(operation.get("responses", {}).items())
    )
    return (
        f'<section id="{escape(operation["operationId"])}"><h2><code>{method} {escape(path)}</code></h2>'
        f"<p>{escape(operation.get('summary', ''))}. {escape(operation.get('description', ''))}</p>{table}"
        f"<pre><code>{escape(_example(method, path, fields))}</code></pre>"
        f"<details><summary>Answers</summary><ul>{statuses}</ul>{_shape(operation, openapi)}</details></section>"
    )


def _resolved(schema: Mapping[str, Any], openapi: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return openapi["components"]["schemas"][name] if name else schema


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if schema.get("type") == "array":
        return f"{_type(schema['items'])}, repeated"
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return "file"
    return str(schema.get("type", "")) or schema.get("$ref", "").rpartition("/")[2]


def _default(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema["default"]) if schema.get("default") is not None else ""


def _example(method: str, path: str, fields: list[tuple[str, bool, Mapping[str, Any], str]]) -> str:
    """A command for the required fields."""
    if method == "GET":
        query = "&".join(f"{name}=WORDS" for name, required, _, _ in fields if required)
        return f"curl 'http://127.0.0.1:8000{path}{'?' + query if query else ''}'"
    given = " ".join(
        "-F file=@eye.jpg" if name == "file" else f"-F {name}=WORDS" for name, required, _, _ in fields if required
    )
    return f"curl {given} http://127.0.0.1:8000{path}"


def _shape(operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> str:
    """Names and meanings of the answer's fields."""
    schema = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema")
    return f"<h3>Fields</h3>{_fields(schema, openapi)}" if schema else ""


def _fields(schema: Mapping[str, Any], openapi: Mapping[str, Any]) -> str:
    found = _resolved(schema, openapi)
    lines = []
    for name, part in found.get("properties", {}).items():
        inner = part.get("items", part)
        nested = _fields(inner, openapi) if "$ref" in inner else ""
        text = part.get("description", "")
        lines.append(
            f"<li><code>{escape(name)}</code> {escape(_type(part))}{': ' + escape(text) if text else ''}{nested}</li>"
        )
    return f"<ul>{''.join(lines)}</ul>" if lines else ""
