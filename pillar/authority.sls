{#- What the authority signs: for each host and service one policy, with everything but the key
    fixed, so that no host can get another's certificate. -#}
{%- from 'names.jinja' import names %}
{%- from 'catalogue.jinja' import site, services, certificates with context %}
x509_signing_policies:
{%- for host, carried in site.hosts.items() %}
  {%- for name, service in services.items() if service.certificate %}
  {{ host }}-{{ name }}:
    - minions: {{ host }}
    - signing_private_key: {{ site.root }}/authority/ca.key
    - signing_cert: {{ site.root }}/trust/ca.pem
    - CN: {{ name }}.{{ host }}.{{ site.name }}
    - subjectAltName: {{ names(site, host, name, service) | load_json | join(', ') }}
    - basicConstraints: critical, CA:FALSE
    - keyUsage: critical, digitalSignature
    - extendedKeyUsage: serverAuth, clientAuth
    - subjectKeyIdentifier: hash
    - authorityKeyIdentifier: keyid
    - days_valid: {{ certificates.days }}
    - digest: sha256
    # What a host could otherwise ask for beside them: other times, extensions, a file here.
    - not_before: null
    - not_after: null
    - csr: null
    - copypath: null
  {%- endfor %}
{%- endfor %}
