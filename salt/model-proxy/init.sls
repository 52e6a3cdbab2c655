{% from 'service.jinja' import init with context %}
{{ init('model-proxy') }}
