{% from 'service.jinja' import healthy with context %}
{{ healthy('head') }}
