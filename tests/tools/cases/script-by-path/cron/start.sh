exec go-crond
