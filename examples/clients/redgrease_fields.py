"""redgrease 0.3.30 fails at fields that it does not know: `lastRunDurationMS` of RG.DUMPREGISTRATIONS, which came with RedisGears
1.2.1, and `Path` of RG.PYDUMPREQS. Import this after redgrease, or run its command line as `python redgrease_fields.py <arguments>`.
"""

import attr
import redgrease.data


def ignore_unknown_fields(kind):
    make, known = kind.__init__, {field.name for field in attr.fields(kind)}
    kind.__init__ = lambda self, **given: make(self, **{name: given[name] for name in given if name in known})


for kind in (redgrease.data.RegData, redgrease.data.PyRequirementInfo):
    ignore_unknown_fields(kind)

if __name__ == '__main__':
    import redgrease.cli

    redgrease.cli.main()
