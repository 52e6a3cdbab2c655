{% from 'service.jinja' import init with context %}
{{ init('rate-limiter') }}
