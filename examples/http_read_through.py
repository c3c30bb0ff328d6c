"""Answers of an HTTP service: GET page:about waits for GET <site>/about. Only Python's standard library is needed.

    redis-cli RG.CONFIGSET site http://127.0.0.1:8000
    redis-cli -X SCRIPT RG.PYEXECUTE SCRIPT ID http-read-through UPGRADE < http_read_through.py
"""

import urllib.error
import urllib.parse
import urllib.request


def lifetime(key, text):
    return 5 if key == 'page:news' else 60


@read_through('page:*', ttl=lifetime, stale=600, negative_ttl=5, max_loads=8, breaker=(5, 10), desc='pages of the site')
def load(key):
    path = urllib.parse.quote(key.partition(':')[2])
    try:
        with urllib.request.urlopen(f"{gearsConfigGet('site', 'http://127.0.0.1:8000')}/{path}", timeout=5) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None  # there is no such page, which is remembered for five seconds
        raise
