"""Commands of the command line, one file each, named as the command. `app` finds them; `setup` builds what they need.
"""
