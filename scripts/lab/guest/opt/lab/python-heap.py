#!/usr/bin/env python3
"""A Python process that lives off its heap: a few hundred thousand small objects, some replaced and some changed all the time.

python-heap.py [PEOPLE]: 70,000 take 210 MB.
"""

import random
import sys
import time

size = int(sys.argv[1]) if len(sys.argv) > 1 else 70_000

rng = random.Random()
people = {}


def person(number):
    return {
        'number': number,
        'name': f'person {number}',
        'mail': f'p{number}@example.org',
        'scores': [rng.random() for _ in range(8)],
        'tags': {rng.choice('abcdefghij') for _ in range(4)},
        'text': ' '.join(rng.choice(('lorem', 'ipsum', 'dolor', 'sit', 'amet')) for _ in range(12)),
    }


for n in range(size):
    people[n] = person(n)
print('filled', flush=True)

count = 0
turn = 0
while True:
    turn += 1
    for _ in range(4_000):
        n = rng.randrange(size)
        if rng.random() < 0.2:
            people[n] = person(n)
        else:
            people[n]['scores'][rng.randrange(8)] = rng.random()
            people[n]['seen'] = people[n].get('seen', 0) + 1
    count += sum(len(people[n]['tags']) for n in range(0, size, 16))
    print(f'round {turn}', count, flush=True)
    time.sleep(0.2)
