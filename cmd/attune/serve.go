package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/attunekv/attune/controller"
)

func newServeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Start a controller",
		Long: `Start a controller: a memcache server any client can talk to.

Every flag is also a key of the --config file and, upper-cased with underscores
and the prefix ATTUNE_, an environment variable. A flag overrides the
environment, which overrides the file, which overrides the default.

SIGTERM or Ctrl-C drains: the controller accepts no more connections, answers
what it received, and exits; a second signal exits at once.

When the --config file changes, or on SIGHUP, it is read again. What can change
while a controller runs does: limits, timeouts, the log level, the servers and
options of a memcached backend. For the rest the log says that they take a
restart, and if anything in the file makes no sense, nothing changes. GET /config
on the admin address shows what is in use.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			read := func() (settings, error) { return load(cmd.Flags(), os.Environ()) }
			s, err := read()
			if err != nil {
				return err
			}
			return serve(s, read)
		},
	}
	addFlags(cmd.Flags())
	cmd.Flags().SortFlags = false
	return cmd
}

// sameSignal is how long after a signal another one is the same: timeout(1) sends
// its to the process and to its group, and so do terminals with a wrapper between.
const sameSignal = 200 * time.Millisecond

// serve runs a controller until it is told to stop. read reads the settings again.
func serve(s settings, read func() (settings, error)) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	hangups := make(chan os.Signal, 1) // one that comes while one waits is the same
	signal.Notify(hangups, syscall.SIGHUP)

	edits, stop := make(chan []byte), make(chan struct{})
	var watching sync.WaitGroup
	defer watching.Wait()
	defer close(stop)
	if s.file != "" {
		w := watched{path: s.file, was: s.raw}
		watching.Go(func() { w.run(edits, stop) })
	}

	level := zap.NewAtomicLevelAt(s.logLevel)
	s.Log = newLogger(s.logFormat, level)
	defer func() { _ = s.Log.Sync() }() // a terminal cannot sync, and says so
	s.LogLevel = &level
	s.Version = release()
	s.Settings = s.shown(&s)

	limitHeap(s.MemoryLimit, !s.Alone())

	if s.Threads > 0 {
		runtime.GOMAXPROCS(s.Threads)
	}
	node, err := open(s.Config, signals)
	if node == nil {
		return err
	}
	var failed error
	for stopping := false; !stopping; {
		stopping = true
		select {
		case <-hangups:
			s, stopping = reload(node, s, read), false
		case raw := <-edits:
			if stopping = false; !bytes.Equal(raw, s.raw) { // else SIGHUP was faster
				s = reload(node, s, read)
			}
		case sig := <-signals:
			s.Log.Info("stopping; the same signal again exits at once", zap.Stringer("signal", sig))
		case <-node.ShutdownAsked():
			s.Log.Info("stopping; a client sent shutdown, or an operator attune leave")
		case failed = <-node.Fatal():
			s.Log.Error("stopping; this controller cannot go on", zap.Error(failed))
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- node.Close(context.Background()) }()
	began := time.Now()
wait:
	for {
		select {
		case err = <-closed:
			break wait
		case sig := <-signals:
			if time.Since(began) >= sameSignal {
				err = errors.New("exited at once on a second signal: " + sig.String())
				break wait
			}
		}
	}
	if err != nil {
		return errors.Join(failed, fmt.Errorf("stopped uncleanly: %w", err))
	}
	return failed
}

// open starts the node, unless a signal comes first: then there is neither a node
// nor an error.
func open(cfg controller.Config, signals chan os.Signal) (*controller.Node, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	type opened struct {
		node *controller.Node
		err  error
	}
	done := make(chan opened, 1)
	go func() {
		node, err := controller.Open(ctx, cfg)
		done <- opened{node, err}
	}()
	select {
	case o := <-done:
		return o.node, o.err
	case sig := <-signals:
		cfg.Log.Info("stopping before this controller has found its place in the cluster", zap.Stringer("signal", sig))
		cancel(errors.New(sig.String()))
		if o := <-done; o.node != nil { // it was faster: it is stopped as any other is
			select {
			case signals <- sig:
			default: // two have come since
			}
			return o.node, nil
		}
		return nil, nil
	}
}

// limitHeap makes the collector run often enough that what was replaced or
// evicted, and is garbage, does not pile up over the memory limit: it bounds the
// live values, a tenth for what surrounds them, and room for connections, or for
// those and what is kept for other controllers. GOMEMLIMIT overrides it.
func limitHeap(limit int64, peers bool) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit == 0 {
		debug.SetMemoryLimit(math.MaxInt64)
		return
	}
	room := int64(64 << 20)
	if peers {
		room += 192 << 20
	}
	debug.SetMemoryLimit(limit + limit/10 + room)
}

func newLogger(format string, level zap.AtomicLevel) *zap.Logger {
	if format == "auto" {
		format = "json"
		if term.IsTerminal(int(os.Stderr.Fd())) {
			format = "console"
		}
	}
	var enc zapcore.Encoder
	if format == "console" {
		cfg := zap.NewDevelopmentEncoderConfig()
		cfg.EncodeLevel = zapcore.CapitalColorLevelEncoder
		enc = zapcore.NewConsoleEncoder(cfg)
	} else {
		cfg := zap.NewProductionEncoderConfig()
		cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
		enc = zapcore.NewJSONEncoder(cfg)
	}
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(os.Stderr), level))
}
