command = ["gunicorn"]
args = ["x"]
