{% from 'service.jinja' import configured with context %}
{{ configured('cache') }}
