"""The run-time check of annotated shapes: beartype, with whole numbers welcome where a float is asked for."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
