"""An inference server: a small model of scikit-learn is trained from examples in the database, and answers where they are.

    redis-cli -X SCRIPT RG.PYEXECUTE SCRIPT ID inference UPGRADE REQUIREMENTS scikit-learn < inference.py
    HSET example:1 features 5.1,3.5,1.4,0.2 label setosa     and so on
    RG.TRIGGER train                                         how many examples it has learned from
    RG.TRIGGER predict 5.0,3.4,1.5,0.2                       the label, and how sure the model is
"""

import io

import joblib
import numpy
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

model, version = None, None


def numbers(text):
    return [float(part) for part in text.split(',')]


def examples():
    cursor = '0'
    while True:
        cursor, keys = execute('SCAN', cursor, 'MATCH', 'example:*', 'COUNT', 1000)
        yield from (execute('HMGET', key, 'features', 'label') for key in keys)
        if cursor == '0':
            return


def train(words):
    rows = list(examples())
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    fitted.fit(numpy.array([numbers(row[0]) for row in rows]), [row[1] for row in rows])
    kept = io.BytesIO()
    joblib.dump(fitted, kept)
    # In a key of the database: replicas, and this server after a restart, have it too.
    execute('HSET', 'model', 'bytes', kept.getvalue(), 'version', execute('INCR', 'model:version'))
    return len(rows)


def current():
    global model, version
    wanted = execute('HGET', 'model', 'version')
    if wanted is None:
        flat_error('ERR there is no model yet: RG.TRIGGER train')
    if version != wanted:
        model, version = joblib.load(io.BytesIO(bytes(execute('HGET', 'model', 'bytes')))), wanted
    return model


def predict(words):
    shares = current().predict_proba(numpy.array([numbers(text) for text in words[1:]]))
    labels = model.classes_
    return [f'{labels[row.argmax()]} {row.max():.2f}' for row in shares]


# On a worker: the server goes on while scikit-learn computes.
GB('CommandReader', desc='trains the model').map(train).register(trigger='train', mode='async_local', convertToStr=False)
GB('CommandReader', desc='answers').flatmap(predict).register(trigger='predict', mode='async_local', convertToStr=False)
