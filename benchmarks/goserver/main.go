// The same as app.py with Go's net/http, stopped on SIGTERM by Shutdown as its documentation has it.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func serve(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/slow":
		pause, _ := time.ParseDuration(r.URL.Query().Get("seconds") + "s")
		time.Sleep(pause)
	case "/upload":
		io.Copy(io.Discard, r.Body)
	case "/stream":
		for number := 0; number < 5; number++ {
			time.Sleep(50 * time.Millisecond)
			fmt.Fprintf(w, "drop %d\n", number)
			w.(http.Flusher).Flush()
		}
		return
	}
	io.WriteString(w, "ok")
}

func main() {
	server := &http.Server{Addr: os.Args[1], Handler: http.HandlerFunc(serve)}
	done := make(chan struct{})
	go func() {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		<-term
		server.Shutdown(context.Background())
		close(done)
	}()
	server.ListenAndServe()
	<-done
}
