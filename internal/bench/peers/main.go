package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// options says what load to make and where.
type options struct {
	system   string
	servers  []string // host:port
	pids     []int    // of the servers, to read their CPU time; none does not
	conns    int
	pipeline int
	channels int // gRPC connections per etcd member
	keys     int
	value    int           // bytes
	warmup   time.Duration // unmeasured load before each kind of request
	duration time.Duration // measured load of each kind of request
	timeout  time.Duration // gives up connecting, a request, a connection's silence
}

// Bounds of the options. They turn a slip of the finger into a message.
const (
	maxConns    = 10_000
	maxPipeline = 1024
	maxChannels = 64
	maxKeys     = 1_000_000
	maxValue    = 1 << 20
	maxPID      = 1 << 31
)

func (o *options) valid() error {
	if len(o.servers) == 0 || o.servers[0] == "" {
		return errors.New("--servers is missing: host:port, several with commas between")
	}
	if o.system == "redis" && len(o.servers) != 1 {
		return errors.New("--servers: redis takes writes at one address, its primary's")
	}
	for _, c := range []struct {
		flag         string
		v, low, high int
	}{
		{"conns", o.conns, 1, maxConns},
		{"pipeline", o.pipeline, 1, maxPipeline},
		{"channels", o.channels, 1, maxChannels},
		{"keys", o.keys, 1, maxKeys},
		{"value", o.value, 1, maxValue},
	} {
		if c.v < c.low || c.v > c.high {
			return fmt.Errorf("--%s %d: must be between %d and %d", c.flag, c.v, c.low, c.high)
		}
	}
	for _, pid := range o.pids {
		if pid < 1 || pid > maxPID {
			return fmt.Errorf("--pids %d: must be between 1 and %d", pid, maxPID)
		}
	}
	if o.warmup < 0 || o.duration <= 0 || o.timeout <= 0 {
		return errors.New("--duration and --timeout must be above 0, --warmup not below")
	}
	return nil
}

// A peer is a system under load.
type peer interface {
	// version is what the server calls itself.
	version() string
	// callers is how many goroutines make requests: together they keep conns
	// times pipeline in flight.
	callers() int
	// kinds are what can be asked. The first writes, and fills the keys.
	kinds() []string
	// call makes one batch of requests of a kind as one caller, a request for
	// each key, and tells record when each was answered. An error ends the load.
	call(ctx context.Context, kind string, caller int, keys []string, record func(at time.Time)) error
	close()
}

func open(ctx context.Context, o *options) (peer, error) {
	switch o.system {
	case "etcd":
		return openEtcd(ctx, o)
	case "redis":
		return openRedis(ctx, o)
	}
	return nil, fmt.Errorf("--system %q: must be etcd or redis", o.system)
}

func main() {
	o := options{}
	f := pflag.NewFlagSet("peers", pflag.ContinueOnError)
	f.StringVar(&o.system, "system", "", "etcd or redis")
	f.StringSliceVar(&o.servers, "servers", nil, "`host:port` of every etcd member, or of the redis primary")
	f.IntSliceVar(&o.pids, "pids", nil, "processes of the servers, replicas too, to read their CPU time")
	f.IntVar(&o.conns, "conns", 64, "connections; goroutines with etcd")
	f.IntVar(&o.pipeline, "pipeline", 1, "requests in flight per connection; multiplies the goroutines with etcd")
	f.IntVar(&o.channels, "channels", 4, "gRPC connections per etcd member")
	f.IntVar(&o.keys, "keys", 10_000, "number of keys")
	f.IntVar(&o.value, "value", 100, "`bytes` of a value")
	f.DurationVar(&o.warmup, "warmup", time.Second, "unmeasured load before each kind of request")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "measured load of each kind of request")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "give up connecting or a request after this")
	if err := f.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return
		}
		fail(2, err)
	}
	if err := o.valid(); err != nil {
		fail(2, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, &o); err != nil {
		fail(1, err)
	}
}

func fail(code int, err error) {
	fmt.Fprintf(os.Stderr, "peers: %v\n", err)
	os.Exit(code)
}

// run fills the keys, then measures every kind of request in turn.
func run(ctx context.Context, o *options) error {
	p, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer p.close()
	kinds, names := p.kinds(), keyNames(o.keys)
	fmt.Printf("%s: closed loop, %d connections, pipeline %d, %d keys of %d bytes uniform, values of %d bytes, 1 round of %s each\n",
		o.system, o.conns, o.pipeline, o.keys, len(names[0]), o.value, o.duration)
	if err := fill(ctx, p, kinds[0], names); err != nil {
		return fmt.Errorf("fill the keys: %w", err)
	}
	for _, kind := range kinds {
		fmt.Printf("\n%s  %s  version %s\n", kind, strings.Join(o.servers, ","), p.version())
		if o.warmup > 0 {
			if _, err := load(ctx, p, o, kind, names, o.warmup); err != nil {
				return fmt.Errorf("warm-up of %s: %w", kind, err)
			}
		}
		m, err := measure(ctx, p, o, kind, names)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		if err := m.write(os.Stdout, kind); err != nil {
			return err
		}
	}
	return nil
}
