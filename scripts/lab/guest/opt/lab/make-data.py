#!/usr/bin/env python3
"""Makes the data of the workloads while the base image is built: the same bytes on every run (seeded).

/var/www/html/p/*.html   1200 pages for nginx, about 20 MB
/srv/redis.resp          40,000 sessions for redis, as commands for redis-cli --pipe, about 30 MB
"""

import glob
import json
import os
import random

rng = random.Random(20140311)
text = ''.join(open(name, encoding='utf-8', errors='replace').read() for name in sorted(glob.glob('/usr/share/common-licenses/*')))
words = text.split()


def prose(count):
    at = rng.randrange(len(words) - count)
    run = words[at : at + count]
    for _ in range(count // 12):  # no two pages alike, none of them noise
        run[rng.randrange(count)] = rng.choice(words)
    return ' '.join(run)


os.makedirs('/var/www/html/p', exist_ok=True)
for page in range(1200):
    with open(f'/var/www/html/p/{page}.html', 'w', encoding='utf-8') as out:
        out.write(f'<!doctype html>\n<html lang="en"><head><title>Page {page}</title></head><body>\n')
        for part in range(rng.randrange(2, 20)):
            out.write(f'<section id="s{part}"><h2>{prose(6)}</h2>\n<p>{prose(rng.randrange(60, 350))}</p></section>\n')
        out.write('</body></html>\n')

with open('/srv/redis.resp', 'wb') as out:
    for user in range(40_000):
        session = {
            'id': f'{rng.getrandbits(128):032x}',
            'user': user,
            'name': f'{rng.choice(words)} {rng.choice(words)}',
            'seen': 1_700_000_000 + rng.randrange(10_000_000),
            'roles': rng.sample(['admin', 'editor', 'author', 'reader', 'guest'], 2),
            'basket': [{'sku': rng.randrange(100_000), 'count': rng.randrange(1, 9)} for _ in range(rng.randrange(6))],
            'note': prose(rng.randrange(20, 80)),
        }
        parts = [b'SET', b'session:%d' % user, json.dumps(session).encode()]
        out.write(b'*3\r\n' + b''.join(b'$%d\r\n%s\r\n' % (len(part), part) for part in parts))
