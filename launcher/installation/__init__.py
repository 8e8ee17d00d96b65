"""Installs a model as a service of systemd: what a unit says is made elsewhere (`render.systemd`).

`places` says where its files go, `reach` what the service will be able to read, `files` puts them there, `standing` asks how
the unit is. Nothing here starts, stops or enables a unit.
"""
