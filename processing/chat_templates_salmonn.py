"""Chat templates: the official form, and that of language models trained on ChatML."""

_MACROS = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'audio' -%}<Speech><SpeechHere></Speech>{{ ' ' }}
{%- elif part.type == 'text' -%}{{ part.text }}
{%- else -%}{{ raise_exception("SALMONN takes 'audio' and 'text' content, not '" ~ part.type ~ "'.") }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro reject(role) -%}
{{- raise_exception("The role of a message must be 'system', 'user' or 'assistant', got '" ~ role ~ "'.") -}}
{%- endmacro -%}
"""

# The form of the official models: USER: <Speech>...</Speech> instruction\nASSISTANT: answer</s>
VICUNA_CHAT_TEMPLATE = (
    _MACROS
    + """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'USER: ' }}{{ render(message.content) }}{{ '\\nASSISTANT:' }}
{%- elif message.role == 'assistant' -%}
{%- generation -%}{{ ' ' }}{{ render(message.content) }}{{ eos_token }}{%- endgeneration -%}
{%- elif message.role == 'system' -%}{{ render(message.content) }}{{ '\\n' }}
{%- else -%}{{ reject(message.role) }}
{%- endif -%}
{%- endfor -%}
"""
)
# For language models that were trained on <|im_start|>role ... <|im_end|>
CHATML_CHAT_TEMPLATE = (
    _MACROS
    + """\
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}{{ reject(message.role) }}{%- endif -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ render(message.content) }}{{ '<|im_end|>' }}{%- endgeneration -%}{{ '\\n' }}
{%- else -%}{{ render(message.content) }}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
)
