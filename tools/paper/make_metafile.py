"""Write configs/metafile.yml from the configs, and from the figures of tables.yml."""

import argparse

from metafile import METAFILE, make_metafile

from pws_mmdet.utils.files import write_whole


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    content = make_metafile()
    write_whole(METAFILE, lambda part: part.write_text(content, 'utf-8'))
    print(f'written: {METAFILE}')


if __name__ == '__main__':
    main()
