"""The chat template of the tiny model: ChatML with audio, in the format of the real Thinking model.

Not here: the words of a prompt (prompt.py). Like the real one it renders a past assistant turn
without its thinking, so a completion is trained by appending it verbatim to a rendered prompt.
"""

from typing import Final

CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{%- set text = message.content -%}
{%- else -%}
{%- set parts = namespace(text='') -%}
{%- for item in message.content -%}
{%- if item.type in ('audio', 'audio_url', 'input_audio') or 'audio' in item -%}
{%- set parts.text = parts.text + '<|audio_start|><|audio_pad|><|audio_end|>' -%}
{%- elif item.type in ('image', 'image_url') or 'image' in item -%}
{%- set parts.text = parts.text + '<|vision_start|><|image_pad|><|vision_end|>' -%}
{%- elif item.type in ('video', 'video_url') or 'video' in item -%}
{%- set parts.text = parts.text + '<|vision_start|><|video_pad|><|vision_end|>' -%}
{%- elif 'text' in item -%}
{%- set parts.text = parts.text + item.text -%}
{%- endif -%}
{%- endfor -%}
{%- set text = parts.text -%}
{%- endif -%}
{%- if message.role == 'assistant' and '</think>' in text -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- text + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
