{% from 'service.jinja' import init with context %}
{{ init('cache') }}
