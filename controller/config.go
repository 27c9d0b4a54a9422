package controller

import (
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/kvadapter"
)

// wireVersion is what clients are told to `version`: three bare numbers, which
// libmemcached and node memcached insist on. It is the memcached release whose
// protocol is spoken, for clients choose their features by it; the release of
// attune is in `stats` as attune_version.
const wireVersion = "1.6.45"

// MaxMaxItemSize is the largest value of Config.MaxItemSize.
const MaxMaxItemSize = 128 << 20

// Config is everything a Node can be told. The zero value of a field is its
// default where the comment says so.
type Config struct {
	// Name is the node's name in the cluster and in logs.
	Name string
	// Version is the release of this binary, shown in stats and metrics.
	Version string
	// Listen holds memcache addresses: host:port, or unix:/path.
	Listen []string
	// Admin is the HTTP address; empty for none.
	Admin string
	// AdminTokenFile holds what must be said at Admin to change something there, or to be
	// told keys or values; empty: nothing must.
	AdminTokenFile string
	// Pprof serves /debug/pprof on Admin.
	Pprof bool
	// Level is the consistency level.
	Level consistency.Level
	// Peer is where the other controllers of a cluster connect; PeerAdvertise is
	// what they are told, if that is not it.
	Peer, PeerAdvertise string
	// Gossip is the address of membership, TCP and UDP.
	Gossip string
	// Join holds gossip addresses of other controllers.
	Join []string
	// Expect is how many controllers make a new cluster.
	Expect int
	// DataDir keeps the replication log; empty for none, or one beside the bytes if
	// Backend keeps these in a directory of this machine. Sync is how: os or always.
	DataDir, Sync string
	// WriteAcks is how many controllers must have a change before it is
	// acknowledged, this one included, or consistency.AllAcks; MaxSkew how far this
	// clock may be from the others'; and TombstoneMaxAge how long an absent
	// controller keeps the others from forgetting what was deleted. All three are for
	// the levels causal and eventual.
	WriteAcks       int
	MaxSkew         time.Duration
	TombstoneMaxAge time.Duration
	// Backend is a kvadapter URL.
	Backend string
	// RepairRate is how many bytes a second are fetched from other controllers for a
	// backend outside this process that lacks them; 0 is no limit.
	RepairRate int64
	// MemoryLimit bounds index and in-process values together, in bytes;
	// 0 is no limit.
	MemoryLimit int64
	// HotCache is the bytes of memory for values that are read often, where the
	// backend is not in this process, besides MemoryLimit; 0 is none.
	HotCache int64
	// MaxItemSize is the largest value a client may store, in bytes.
	MaxItemSize int
	// MaxConns bounds client connections; one more is told so and closed.
	MaxConns int
	// Threads is how many event loops serve the connections, where event loops
	// do; 0 is as many as GOMAXPROCS, which whoever runs the process may bring to the
	// same number. Fewer cost less CPU per command, more serve more.
	Threads int
	// IdleTimeout closes a connection on which nothing moved, 0 never. It also
	// ends one whose client does not read its replies.
	IdleTimeout time.Duration
	// OpTimeout is how long a command may wait for the engine or the backend.
	OpTimeout time.Duration
	// DrainTimeout is how long Close lets sessions finish.
	DrainTimeout time.Duration
	// DisableFlush refuses flush_all.
	DisableFlush bool
	// EnableShutdown lets clients stop the node with `shutdown`.
	EnableShutdown bool

	// EnableFaults lets /fault on Admin break the network of this node, and its clock.
	EnableFaults bool
	// Settings is what this was made of, for /config.
	Settings []Setting

	Log *zap.Logger
	// LogLevel, if set, can be read and changed at /loglevel on Admin.
	LogLevel *zap.AtomicLevel

	// TraceEndpoint is the URL of an OpenTelemetry collector that takes OTLP over HTTP;
	// without a path it gets /v1/traces. Empty: nothing is exported. TraceSample is the
	// fraction of commands that are traced.
	TraceEndpoint string
	TraceSample   float64
	// LogSample is how many lines of Log that say the same are written.
	LogSample LogSample

	// goroutines serves every connection on a goroutine of its own, as where
	// there is no event loop; tests set it.
	goroutines bool
	// wrap, if set, replaces the engine; tests set it.
	wrap func(consistency.Engine) consistency.Engine
}

// Default is the configuration of `attune serve` without flags.
func Default() Config {
	return Config{
		Name:            "n1",
		Version:         "dev",
		Listen:          []string{"127.0.0.1:8000"},
		Admin:           "127.0.0.1:9090",
		Level:           consistency.Eventual,
		Peer:            "127.0.0.1:7400",
		Gossip:          "127.0.0.1:7946",
		Expect:          1,
		Sync:            "os",
		WriteAcks:       1,
		MaxSkew:         5 * time.Second,
		TombstoneMaxAge: 24 * time.Hour,
		Backend:         "embedded",
		RepairRate:      64 << 20,
		MemoryLimit:     1 << 30,
		HotCache:        64 << 20,
		MaxItemSize:     1 << 20,
		MaxConns:        10000,
		OpTimeout:       time.Second,
		DrainTimeout:    10 * time.Second,
		TraceSample:     0.001,
		LogSample:       LogSample{First: 50, Every: 500},
		Log:             zap.NewNop(),
	}
}

// threads is how many event loops there are to be.
func (c *Config) threads() int {
	if c.Threads > 0 {
		return c.Threads
	}
	return runtime.GOMAXPROCS(0)
}

// Validate reports the first setting that cannot be used, by its flag name.
func (c *Config) Validate() error {
	bad := func(key, format string, args ...any) error {
		return fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...))
	}
	if c.Name == "" || len(c.Name) > 64 || strings.ContainsAny(c.Name, " \t\r\n") {
		return bad("name", "want 1 to 64 characters without blanks, have %q", c.Name)
	}
	if len(c.Listen) == 0 {
		return bad("listen", "want at least one address, such as 127.0.0.1:8000 or unix:/run/attune.sock")
	}
	for _, a := range c.Listen {
		if err := checkAddr(a); err != nil {
			return bad("listen", "%v", err)
		}
	}
	if c.Admin != "" {
		if err := checkAddr(c.Admin); err != nil {
			return bad("admin", "%v", err)
		}
	}
	if c.AdminTokenFile != "" {
		if _, err := readToken(c.AdminTokenFile); err != nil {
			return bad("admin-token-file", "%v", err)
		}
	}
	if c.MemoryLimit != 0 && c.MemoryLimit < 8<<20 {
		return bad("memory-limit", "want 0 (none) or at least 8MiB, have %d bytes", c.MemoryLimit)
	}
	if c.HotCache != 0 && (c.HotCache < 1<<20 || c.HotCache > 1<<40) {
		return bad("hot-cache", "want 0 (none) or 1MiB to 1TiB, have %d bytes", c.HotCache)
	}
	if c.MaxItemSize < 1<<10 || c.MaxItemSize > MaxMaxItemSize {
		return bad("max-item-size", "want 1KiB to 128MiB, have %d bytes", c.MaxItemSize)
	}
	if c.MemoryLimit != 0 && int64(c.MaxItemSize) > c.MemoryLimit/2 {
		return bad("max-item-size", "%d bytes is more than half of memory-limit (%d)", c.MaxItemSize, c.MemoryLimit)
	}
	if c.MaxConns < 1 {
		return bad("max-conns", "want at least 1, have %d", c.MaxConns)
	}
	if c.Threads < 0 || c.Threads > 1024 {
		return bad("threads", "want 0 (all that are there) to 1024, have %d", c.Threads)
	}
	if err := c.validateCluster(bad); err != nil {
		return err
	}
	if _, err := traceURL(c.TraceEndpoint); err != nil {
		return bad("trace-endpoint", "%v", err)
	}
	if !(c.TraceSample >= 0 && c.TraceSample <= 1) {
		return bad("trace-sample", "want a fraction of the commands, 0 to 1, have %v", c.TraceSample)
	}
	if c.LogSample.First < 0 || c.LogSample.Every < 0 || c.LogSample.First == 0 && c.LogSample.Every != 0 {
		return bad("log-sample", "want first:every, such as 50:500, or off, have %d:%d", c.LogSample.First, c.LogSample.Every)
	}
	for _, d := range []struct {
		key string
		d   time.Duration
	}{{"idle-timeout", c.IdleTimeout}, {"op-timeout", c.OpTimeout}, {"drain-timeout", c.DrainTimeout}} {
		if d.d < 0 {
			return bad(d.key, "want a duration of 0 or more, have %v", d.d)
		}
	}
	return nil
}

// Alone reports whether this controller has no cluster: at the levels causal and
// eventual, one that neither expects others nor is to find them, and keeps nothing
// on disk. It opens no peer port, and causal is then what eventual is.
func (c *Config) Alone() bool {
	return c.Level >= consistency.Causal && c.Expect <= 1 && len(c.Join) == 0 && c.dataDir() == ""
}

// dataDir is DataDir or, if bytes are kept in a directory of this machine and
// nothing is said about the rest, one beside them: bytes outlive a controller only
// together with what says which of them are current.
func (c *Config) dataDir() string {
	if dir, _ := kvadapter.PebbleDir(c.Backend); c.DataDir == "" && dir != "" {
		return filepath.Join(dir, "state")
	}
	return c.DataDir
}

// validateCluster looks at what is about other controllers.
func (c *Config) validateCluster(bad func(key, format string, args ...any) error) error {
	if c.WriteAcks < 1 {
		return bad("write-acks", "want 1 or more, or all, have %d", c.WriteAcks)
	}
	if c.MaxSkew < 10*time.Millisecond || c.MaxSkew > time.Hour {
		return bad("max-skew", "want 10ms to 1h, have %v", c.MaxSkew)
	}
	if c.TombstoneMaxAge < time.Minute {
		return bad("tombstone-max-age", "want at least 1m, have %v", c.TombstoneMaxAge)
	}
	if c.Alone() {
		if c.WriteAcks > 1 && c.WriteAcks != consistency.AllAcks {
			return bad("write-acks", "%d controllers are to have each change, and this one is alone: set expect or join, or leave this out", c.WriteAcks)
		}
		return nil
	}
	for _, a := range []struct{ key, addr string }{{"peer", c.Peer}, {"gossip", c.Gossip}} {
		if _, err := tcpHost(a.addr); err != nil {
			return bad(a.key, "want host:port, have %q", a.addr)
		}
	}
	// Others dial these. An empty host would be their own.
	if host, err := tcpHost(c.PeerAdvertise); c.PeerAdvertise != "" && (err != nil || host == "") {
		return bad("peer-advertise", "want host:port, have %q", c.PeerAdvertise)
	}
	for _, a := range c.Join {
		if host, err := tcpHost(a); err != nil || host == "" {
			return bad("join", "want host:port of each, have %q", a)
		}
	}
	if c.Expect < 1 || c.Expect > 99 {
		return bad("expect", "want 1 to 99, have %d", c.Expect)
	}
	if err := consistency.ParseSync(c.Sync); err != nil || c.Sync == "none" {
		return bad("sync", "want os or always, have %q", c.Sync)
	}
	return nil
}

// splitAddr says how to listen on a.
func splitAddr(a string) (network, address string) {
	if path, ok := strings.CutPrefix(a, "unix:"); ok {
		return "unix", strings.TrimPrefix(path, "//")
	}
	return "tcp", a
}

// tcpHost is the host of a host:port, which may be empty: every address of the machine.
func tcpHost(a string) (host string, err error) {
	if err := checkAddr(a); err != nil || strings.HasPrefix(a, "unix:") {
		return "", fmt.Errorf("%q is not host:port", a)
	}
	host, _, err = net.SplitHostPort(a)
	return host, err
}

func checkAddr(a string) error {
	network, address := splitAddr(a)
	if network == "unix" {
		if address == "" {
			return fmt.Errorf("%q has no path, such as unix:/run/attune.sock", a)
		}
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%q is not host:port: %v", a, err)
	}
	return nil
}
