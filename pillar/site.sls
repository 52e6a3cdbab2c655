{%- from 'names.jinja' import names %}
{%- import_yaml 'site.yaml' as site %}
{%- import_yaml 'services.sls' as catalogue %}
{%- set carried = (site.hosts | default({})).get(opts.id) or {} %}
# What site.yaml says, and what it makes of this minion.
llm:
  site: {{ site | json }}
  host: {{ opts.id | json }}
  roles: {{ carried.get('roles', []) | json }}
  {%- if carried %}
  names:                        # in its certificates
  {%- for name, service in catalogue.llm.services.items() if service.certificate is defined %}
    {{ name }}: {{ names(site, opts.id, name, service) }}
  {%- endfor %}
  {%- endif %}
{%- if carried %}

# Certificates renew themselves between deploys too. All hosts ask the authority, not all at once.
schedule:
  certificates:
    function: llm_certificate.renew_due
    hours: 6                    # often enough for certificates of two days
    splay: 600                  # seconds
    return_job: False
{%- endif %}
