from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from server.chat_template import ChatTemplate, ChatTemplateError

MESSAGES = [{"role": "user", "content": "Hi <b>&"}, {"role": "assistant", "content": "Yo"}]


def render(source: str, **options: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES, **options)


def test_messages_tokens_and_flags_are_known() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    assert render(source) == "<s>[user]Hi <b>&[assistant]Yo>"
    assert render(source, add_generation_prompt=False) == "<s>[user]Hi <b>&[assistant]Yo"


def test_blocks_are_trimmed_as_hugging_face_does() -> None:
    assert render("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"


def test_tojson_neither_escapes_html_nor_sorts() -> None:
    tools = [{"b": "<é>", "a": 1}]
    assert render("{{ tools | tojson }}", tools=tools) == '[{"b": "<é>", "a": 1}]'
    assert render("{{ tools[0] | tojson(indent=1) }}", tools=tools) == json.dumps(
        tools[0], indent=1, ensure_ascii=False
    )


def test_loop_controls_time_and_generation_blocks_work() -> None:
    source = (
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') }}"
    )
    assert render(source) == f"user{datetime.now():%Y}"


def test_variables_of_the_request_are_known() -> None:
    assert render("{{ enable_thinking }}", variables={"enable_thinking": False}) == "False"


def test_refusals_and_failures_are_told() -> None:
    with pytest.raises(ChatTemplateError, match=r"^roles must alternate$"):
        render("{{ raise_exception('roles must alternate') }}")
    for source in ("{{ messages[9].content }}", "{{ 1 / 0 }}", "{{ none + 'a' }}"):
        with pytest.raises(ChatTemplateError, match="cannot render"):
            render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source)


def test_the_size_of_a_prompt_is_bounded() -> None:
    loop = "{% for i in range(99999) %}"
    source = f"{loop}{loop}{{{{ 'x' * 99 }}}}{{% endfor %}}{{% endfor %}}"
    with pytest.raises(ChatTemplateError, match="longer than"):
        render(source)


def test_a_final_message_is_continued_where_it_ends() -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
    template = ChatTemplate(source)
    for content in ("Once upon", "Once upon  ", "user"):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
        prompt = template.render(messages, continue_final_message=True)
        assert prompt == f"<user>Hi</><assistant>{content.strip()}"
    with pytest.raises(ChatTemplateError, match="no final message"):
        template.render([{"role": "user", "content": " "}], continue_final_message=True)
    with pytest.raises(ChatTemplateError, match="changes the final message"):
        ChatTemplate("nothing").render(MESSAGES, continue_final_message=True)


def write(directory: Path, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / name).write_text(text, encoding="utf-8")


def test_the_template_is_found_where_models_keep_it(tmp_path: Path) -> None:
    assert ChatTemplate.from_directory(tmp_path) is None
    write(tmp_path, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "eos_token": None})
    assert ChatTemplate.from_directory(tmp_path) is None
    config: dict[str, Any] = {"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}1"}
    write(tmp_path, "tokenizer_config.json", config)
    assert rendered(tmp_path) == "<s>1"
    named = [{"name": "tool_use", "template": "2"}, {"name": "default", "template": "3"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert rendered(tmp_path) == "3"
    write(tmp_path, "chat_template.jinja", "4")
    assert rendered(tmp_path) == "4"


def rendered(directory: Path) -> str:
    template = ChatTemplate.from_directory(directory)
    assert template is not None
    return template.render(MESSAGES)


def test_broken_files_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat template is invalid"):
        ChatTemplate("{% if %}")
    write(tmp_path, "tokenizer_config.json", "{")
    with pytest.raises(ValueError, match="cannot read"):
        ChatTemplate.from_directory(tmp_path)
