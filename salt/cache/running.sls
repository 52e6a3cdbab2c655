{% from 'service.jinja' import running with context %}
{{ running('cache') }}
