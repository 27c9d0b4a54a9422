package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of what Options may ask for. They exist to turn a slip of the finger
// into a message rather than into a machine that swaps.
const (
	maxConns    = 60_000
	maxPipeline = 4096
	maxKeySize  = 250
	maxValue    = 128 << 20
	maxRate     = 100_000_000
	maxRounds   = 10_000
	maxZipf     = 10
)

// keyPrefix starts every key, so that what a run left behind can be told from
// real data.
const keyPrefix = "bench:"

// Options says what load to make and where. The zero value is not usable; start
// from [Defaults]. The doc comments name the flags of `attune bench` because
// the errors of a refused value do.
type Options struct {
	// Server, --server, is "host:port" or "unix:/path", or the addresses of a
	// cluster with commas between: the connections take them in turn.
	Server string `json:"server"`
	VS     string `json:"vs,omitempty"`
	PID    PIDs   `json:"pid,omitempty"`    // of Server, to read their CPU time; none does not
	VSPID  PIDs   `json:"vs_pid,omitempty"` // of VS

	Protocol string `json:"protocol"` // text, meta or binary
	Conns    int    `json:"conns"`
	Threads  int    `json:"threads"`  // more than Conns are not started
	Pipeline int    `json:"pipeline"` // requests in flight per connection
	Rate     int    `json:"rate"`     // ops per second of all connections together; 0 is a closed loop

	// Incr makes every request an incr by 1, and every key a counter that starts
	// at 0; Ratio and Values are unused then.
	Incr    bool    `json:"incr,omitempty"`
	Ratio   Ratio   `json:"ratio"`
	Keys    int64   `json:"keys"`
	KeySize int     `json:"key_size"` // bytes of every key
	Values  Sizes   `json:"value_size"`
	Dist    string  `json:"dist"`   // uniform or zipf
	ZipfS   float64 `json:"zipf_s"` // exponent of zipf; unused by uniform
	Seed    uint64  `json:"seed"`   // same seed, same requests per connection

	Warmup   time.Duration `json:"-"`   // before each measured round; 0 is none
	Duration time.Duration `json:"-"`   // of a measured round; 0 is until Ops
	Ops      int64         `json:"ops"` // of a measured round; 0 is until Duration
	Rounds   int           `json:"rounds"`
	Prefill  bool          `json:"prefill"` // set every key once before the first round
	Verify   bool          `json:"verify"`  // compare every byte of a hit
	// Timeout bounds connecting, a silence of the whole server, and the wait for
	// the last replies of a pass.
	Timeout time.Duration `json:"-"`

	// Progress, when set, is called a few times a second, one call at a time.
	Progress func(Progress) `json:"-"`

	driver *driver // nil is the best of the platform; tests choose
}

// Progress is how far a run has come.
type Progress struct {
	Stage    string  // e.g. "prefill A", "warm-up B, round 2/5", "A, round 2/5"
	Fraction float64 // of this stage, 0 to 1
	Rate     float64 // replies per second in this stage so far
}

// Defaults returns the options of a plain `attune bench`.
func Defaults() Options {
	return Options{
		Server:   "127.0.0.1:8000",
		Protocol: "text",
		Conns:    50,
		Threads:  runtime.GOMAXPROCS(0),
		Pipeline: 1,
		Ratio:    Ratio{Gets: 9, Sets: 1},
		Keys:     100_000,
		KeySize:  20,
		Values:   Sizes{Min: 100, Max: 100},
		Dist:     "uniform",
		ZipfS:    0.99,
		Seed:     1,
		Warmup:   time.Second,
		Duration: 10 * time.Second,
		Rounds:   1,
		Prefill:  true,
		Timeout:  10 * time.Second,
	}
}

// Validate reports the first value that cannot be run, by its flag.
func (o *Options) Validate() error {
	for _, side := range []struct{ flag, list string }{{"server", o.Server}, {"vs", o.VS}} {
		if side.list == "" && side.flag == "vs" {
			continue
		}
		addrs := addresses(side.list)
		for _, addr := range addrs {
			if err := validAddress(addr); err != nil {
				return fmt.Errorf("--%s %q: %w", side.flag, addr, err)
			}
		}
		if o.Conns > 0 && o.Conns < len(addrs) {
			return fmt.Errorf("--conns %d: must be at least the %d addresses of --%s", o.Conns, len(addrs), side.flag)
		}
	}
	if o.VS == "" && len(o.VSPID) > 0 {
		return errors.New("--vs-pid needs --vs")
	}
	if err := o.PID.valid(); err != nil {
		return fmt.Errorf("--pid %s: %w", o.PID, err)
	}
	if err := o.VSPID.valid(); err != nil {
		return fmt.Errorf("--vs-pid %s: %w", o.VSPID, err)
	}
	if o.Incr && o.Verify {
		return errors.New("--verify knows no value to expect with --incr: use one of them")
	}
	if _, err := newDialect(o.Protocol); err != nil {
		return err
	}
	digits := len(strconv.FormatInt(max(o.Keys, 1)-1, 10))
	for _, c := range []struct {
		flag         string
		v, low, high int64
	}{
		{"conns", int64(o.Conns), 1, maxConns},
		{"threads", int64(o.Threads), 1, maxConns},
		{"pipeline", int64(o.Pipeline), 1, maxPipeline},
		{"rate", int64(o.Rate), 0, maxRate},
		{"keys", o.Keys, 1, 1 << 40},
		{"key-size", int64(o.KeySize), int64(len(keyPrefix) + digits), maxKeySize},
		{"rounds", int64(o.Rounds), 1, maxRounds},
		{"ops", o.Ops, 0, 1 << 50},
	} {
		if c.v < c.low || c.v > c.high {
			return fmt.Errorf("--%s %d: must be between %d and %d", c.flag, c.v, c.low, c.high)
		}
	}
	if err := o.Ratio.valid(); err != nil {
		return fmt.Errorf("--ratio %s: %w", o.Ratio, err)
	}
	if err := o.Values.valid(); err != nil {
		return fmt.Errorf("--value-size %s: %w", o.Values, err)
	}
	switch o.Dist {
	case "uniform":
	case "zipf":
		if !(o.ZipfS > 0 && o.ZipfS <= maxZipf) {
			return fmt.Errorf("--zipf-s %g: must be above 0 and at most %d", o.ZipfS, maxZipf)
		}
	default:
		return fmt.Errorf("--dist %q: must be uniform or zipf", o.Dist)
	}
	if o.Warmup < 0 {
		return fmt.Errorf("--warmup %s: must not be negative", o.Warmup)
	}
	if o.Duration < 0 {
		return fmt.Errorf("--duration %s: must not be negative", o.Duration)
	}
	if o.Duration == 0 && o.Ops == 0 {
		return errors.New("one of --duration and --ops must be above 0")
	}
	if o.Timeout <= 0 {
		return fmt.Errorf("--timeout %s: must be above 0", o.Timeout)
	}
	return nil
}

// MarshalJSON writes durations as "10s", the way flags take them.
func (o Options) MarshalJSON() ([]byte, error) {
	type plain Options
	return json.Marshal(struct {
		plain
		Warmup   string `json:"warmup"`
		Duration string `json:"duration"`
		Timeout  string `json:"timeout"`
	}{plain(o), o.Warmup.String(), o.Duration.String(), o.Timeout.String()})
}

// String says the load in one line.
func (o *Options) String() string {
	var b strings.Builder
	if o.Rate > 0 {
		fmt.Fprintf(&b, "open loop at %d ops/s", o.Rate)
	} else {
		b.WriteString("closed loop")
	}
	load := "incr"
	if !o.Incr {
		load = "get:set " + o.Ratio.String()
	}
	fmt.Fprintf(&b, ", %d connections, pipeline %d, %s, %s, %d keys of %d bytes %s",
		o.Conns, o.Pipeline, o.Protocol, load, o.Keys, o.KeySize, o.Dist)
	if o.Dist == "zipf" {
		fmt.Fprintf(&b, " s=%g", o.ZipfS)
	}
	if !o.Incr {
		fmt.Fprintf(&b, ", values of %s bytes", o.Values)
	}
	fmt.Fprintf(&b, ", %d ", o.Rounds)
	if o.Rounds == 1 {
		b.WriteString("round of ")
	} else {
		b.WriteString("rounds of ")
	}
	switch {
	case o.Ops > 0 && o.Duration > 0:
		fmt.Fprintf(&b, "%d ops or %s", o.Ops, o.Duration)
	case o.Ops > 0:
		fmt.Fprintf(&b, "%d ops", o.Ops)
	default:
		b.WriteString(o.Duration.String())
	}
	return b.String()
}

// addresses splits what --server and --vs take.
func addresses(list string) []string { return strings.Split(list, ",") }

// validAddress accepts what [network] can split.
func validAddress(addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return errors.New("unix: lacks its path")
		}
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New("must be host:port or unix:/path")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q: must be between 1 and 65535", port)
	}
	return nil
}

// network splits a valid address into what net.Dial takes.
func network(addr string) (netw, address string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "unix", path
	}
	return "tcp", addr
}

// maxPID is the largest process id there is: Linux stops at 2^22, others at 2^31.
const maxPID = 1 << 31

// PIDs are the processes of a server or cluster. It is a flag value.
type PIDs []int

// String returns them with commas between.
func (p PIDs) String() string {
	words := make([]string, len(p))
	for i, pid := range p {
		words[i] = strconv.Itoa(pid)
	}
	return strings.Join(words, ",")
}

// MarshalJSON writes a single process as a number, several as an array of them.
func (p PIDs) MarshalJSON() ([]byte, error) {
	if len(p) == 1 {
		return json.Marshal(p[0])
	}
	return json.Marshal([]int(p))
}

// Type names the flag's argument in the help.
func (p *PIDs) Type() string { return "N[,N...]" }

// Set parses process ids with commas between.
func (p *PIDs) Set(s string) error {
	var all PIDs
	for _, word := range strings.Split(s, ",") {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return errors.New("must be process ids with commas between, as in 71,72,73")
		}
		all = append(all, pid)
	}
	if err := all.valid(); err != nil {
		return err
	}
	*p = all
	return nil
}

func (p PIDs) valid() error {
	for i, pid := range p {
		if pid < 1 || pid > maxPID {
			return fmt.Errorf("must be between 1 and %d", maxPID)
		}
		if slices.Contains(p[:i], pid) {
			return fmt.Errorf("names process %d twice", pid)
		}
	}
	return nil
}

// Ratio is how many gets come with how many sets. It is a flag value.
type Ratio struct{ Gets, Sets int }

// String returns "gets:sets".
func (r Ratio) String() string { return fmt.Sprintf("%d:%d", r.Gets, r.Sets) }

// MarshalText makes it "gets:sets" in JSON too.
func (r Ratio) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Type names the flag's argument in the help.
func (r *Ratio) Type() string { return "gets:sets" }

// Set parses "gets:sets".
func (r *Ratio) Set(s string) error {
	g, w, ok := strings.Cut(s, ":")
	gets, err1 := strconv.Atoi(g)
	sets, err2 := strconv.Atoi(w)
	if !ok || err1 != nil || err2 != nil {
		return errors.New("must be gets:sets, as in 9:1")
	}
	n := Ratio{gets, sets}
	if err := n.valid(); err != nil {
		return err
	}
	*r = n
	return nil
}

func (r Ratio) valid() error {
	if r.Gets < 0 || r.Sets < 0 || r.Gets > 1_000_000 || r.Sets > 1_000_000 || r.Gets+r.Sets == 0 {
		return errors.New("must be two numbers from 0 to 1000000, not both 0")
	}
	return nil
}

// Sizes is a range of value sizes in bytes, both ends included, each size as
// likely. It is a flag value.
type Sizes struct{ Min, Max int }

// String returns "N", or "N-M" for a true range.
func (z Sizes) String() string {
	if z.Min == z.Max {
		return strconv.Itoa(z.Min)
	}
	return fmt.Sprintf("%d-%d", z.Min, z.Max)
}

// MarshalText makes it "N-M" in JSON too.
func (z Sizes) MarshalText() ([]byte, error) { return []byte(z.String()), nil }

// Type names the flag's argument in the help.
func (z *Sizes) Type() string { return "N|N-M" }

// Set parses "N" or "N-M".
func (z *Sizes) Set(s string) error {
	low, high, ok := strings.Cut(s, "-")
	if !ok {
		high = low
	}
	lo, err1 := strconv.Atoi(low)
	hi, err2 := strconv.Atoi(high)
	if err1 != nil || err2 != nil {
		return errors.New("must be bytes, N or N-M, as in 100 or 64-1024")
	}
	n := Sizes{lo, hi}
	if err := n.valid(); err != nil {
		return err
	}
	*z = n
	return nil
}

func (z Sizes) valid() error {
	if z.Min < 0 || z.Max < z.Min || z.Max > maxValue {
		return fmt.Errorf("must lie between 0 and %d, the smaller first", maxValue)
	}
	return nil
}
