package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// adminServer is the HTTP side: /healthz, /readyz, /metrics, /loglevel, /config, /fault,
// /recover, /snapshot, and /debug/pprof when asked for.
type adminServer struct {
	ln   net.Listener
	http *http.Server
	done chan struct{} // closed when Serve returned
	// sending is held for reading by who sends a snapshot, as that needs the replica;
	// it guards closed.
	sending sync.RWMutex
	closed  bool
}

func (n *Node) openAdmin(context.Context) error {
	if n.cfg.Admin == "" {
		return nil
	}
	ln, err := listen(n.cfg.Admin, "admin")
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{n},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	a := &adminServer{
		ln:   ln,
		http: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: zap.NewStdLog(n.log)},
		done: make(chan struct{}),
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	// Not only when Open is done: a controller that came back to a lost quorum waits
	// in there for good, and is told here to go on without.
	whenEngine := func(h http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if n.health.Load() == nil {
				http.Error(w, n.opening().Error(), http.StatusServiceUnavailable)
				return
			}
			h.ServeHTTP(w, r)
		}
	}
	mux.HandleFunc("GET /metrics", whenEngine(promhttp.HandlerFor(registry, promhttp.HandlerOpts{})))
	mux.HandleFunc("GET /snapshot", whenEngine(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.sending.RLock()
		defer a.sending.RUnlock()
		if !a.closed { // else the connection is, too
			n.serveSnapshot(w, r)
		}
	})))
	mux.HandleFunc("GET /config", n.serveConfig)
	mux.HandleFunc("/fault", n.serveFault)
	mux.HandleFunc("/recover", whenEngine(http.HandlerFunc(n.serveRecover)))
	if n.cfg.LogLevel != nil {
		// GET shows it, PUT {"level":"debug"} changes it.
		mux.Handle("/loglevel", n.cfg.LogLevel)
	}
	if n.cfg.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	go func() {
		defer close(a.done)
		if err := a.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("admin server ended; health checks and metrics are gone until a restart", zap.Error(err))
		}
	}()
	n.admin = a
	return nil
}

func (a *adminServer) addr() string { return a.ln.Addr().String() }

func (a *adminServer) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := a.http.Shutdown(ctx)
	if err != nil { // a scrape or profile that would not end
		err = a.http.Close()
	}
	<-a.done
	a.sending.Lock()
	defer a.sending.Unlock()
	a.closed = true
	return err
}
