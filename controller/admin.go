package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// adminServer is the HTTP side: the page for people at / and its /api, /healthz,
// /readyz, /metrics, /loglevel, /config, /fault, /recover, /leader/transfer, /join, /leave,
// /snapshot, /explain, /watch, /trace, and /debug/pprof when asked for. Whatever changes
// something takes the admin token, if there is one, and so does what tells keys or values.
type adminServer struct {
	ln    net.Listener
	http  *http.Server
	done  chan struct{} // closed when Serve returned
	peers *peerViews
	// using is held for reading by who needs the replica; it guards closed.
	using  sync.RWMutex
	closed bool
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
		ln: ln,
		http: &http.Server{
			Handler:           n.guard(mux, ln.Addr()),
			ReadHeaderTimeout: 5 * time.Second, ErrorLog: zap.NewStdLog(n.log),
		},
		done:  make(chan struct{}),
		peers: newPeerViews(n),
	}
	n.handleWeb(mux, a)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		// Reads and deletions are served, and most of what a cache is asked is reads.
		if err := n.full(); err != nil {
			fmt.Fprintf(w, "ready, but writes are refused: %v\n", err)
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
	whileOpen := func(serve http.HandlerFunc) http.HandlerFunc { return whenEngine(a.whileOpen(serve)) }
	mux.HandleFunc("GET /snapshot", n.authorized(whileOpen(n.serveSnapshot)))
	mux.HandleFunc("GET /explain", n.authorized(whileOpen(n.serveExplain)))
	mux.HandleFunc("GET /watch", n.authorized(whileOpen(n.serveWatch)))
	mux.HandleFunc("/trace", whileOpen(n.serveTrace))
	mux.HandleFunc("/leader/transfer", whenEngine(http.HandlerFunc(n.serveTransfer)))
	mux.HandleFunc("/join", n.serveJoin) // also while it looks for the others
	mux.HandleFunc("/leave", whenEngine(http.HandlerFunc(n.serveLeave)))
	mux.HandleFunc("GET /config", n.serveConfig)
	mux.HandleFunc("/fault", n.serveFault)
	mux.HandleFunc("/recover", whenEngine(http.HandlerFunc(n.serveRecover)))
	if n.cfg.LogLevel != nil {
		// GET shows it, PUT {"level":"debug"} changes it.
		mux.Handle("/loglevel", n.cfg.LogLevel)
	}
	if n.cfg.Pprof {
		for path, serve := range map[string]http.HandlerFunc{
			"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
		} {
			mux.HandleFunc("/debug/pprof/"+path, n.authorized(serve))
		}
	}
	go func() {
		defer close(a.done)
		if err := a.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("admin server ended; health checks and metrics are gone until a restart", zap.Error(err))
		}
	}()
	n.watching.Go(n.observe)
	n.admin = a
	return nil
}

// whileOpen keeps the engine and the replica there while h runs.
func (a *adminServer) whileOpen(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.using.RLock()
		defer a.using.RUnlock()
		if !a.closed { // else the connection is, too
			h(w, r)
		}
	}
}

func (a *adminServer) addr() string { return boundAddr(a.ln) }

// adminStat is the admin address as clients are told: as bound, or unix: and a path.
func (n *Node) adminStat() string {
	if strings.HasPrefix(n.cfg.Admin, "unix:") {
		return n.cfg.Admin
	}
	return n.AdminAddr()
}

func (a *adminServer) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := a.http.Shutdown(ctx)
	if err != nil { // a scrape or profile that would not end
		err = a.http.Close()
	}
	<-a.done
	a.peers.close()
	a.using.Lock()
	defer a.using.Unlock()
	a.closed = true
	return err
}
