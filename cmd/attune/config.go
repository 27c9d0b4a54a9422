package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"go.uber.org/zap/zapcore"
	"gopkg.in/ini.v1"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/controller"
)

// settings is what `attune serve` runs with.
type settings struct {
	controller.Config
	logLevel  zapcore.Level
	logFormat string            // auto, console or json
	values    map[string]string // of every setting, as it was written
	from      map[string]string // where that is: a flag, a variable, a line of the file, or default
	file      string            // empty for none
	raw       []byte            // what is in it
}

// setting is one thing an operator may choose. The same key is a flag, a line of
// config.ini and, upper-cased with underscores, an ATTUNE_ variable.
type setting struct {
	key   string
	value string // default
	usage string
	set   func(s *settings, value string) error
}

// allSettings is in the order of config.ini and of the README's table, which a
// test compares with it.
var allSettings = []setting{
	{"name", "n1", "name of this controller, unique in its cluster",
		func(s *settings, v string) error { s.Name = v; return nil }},
	{"listen", "127.0.0.1:8000", "memcache addresses, comma-separated: host:port or unix:/path",
		func(s *settings, v string) error { s.Listen = list(v); return nil }},
	{"admin", "127.0.0.1:9090", "HTTP address of the web page (/), /api/cluster /api/node /healthz /readyz /metrics /loglevel /config /fault /recover /snapshot /explain /watch /trace /leader/transfer /join /leave; off for none",
		func(s *settings, v string) error {
			if s.Admin = v; v == "off" {
				s.Admin = ""
			}
			return nil
		}},
	{"admin-token-file", "", "file with a token that who changes something at the admin address must say, or reads keys or values there; none: nobody must",
		func(s *settings, v string) error { s.AdminTokenFile = v; return nil }},
	{"peer", "127.0.0.1:7400", "address for the other controllers of the cluster: replication and state transfer",
		func(s *settings, v string) error { s.Peer = v; return nil }},
	{"peer-advertise", "", "address the others reach --peer at, if that is another (NAT, containers)",
		func(s *settings, v string) error { s.PeerAdvertise = v; return nil }},
	{"gossip", "127.0.0.1:7946", "address for membership and failure detection, TCP and UDP",
		func(s *settings, v string) error { s.Gossip = v; return nil }},
	{"join", "", "gossip addresses of other controllers, comma-separated; its own may be among them",
		func(s *settings, v string) error { s.Join = list(v); return nil }},
	{"expect", "1", "controllers that make a new cluster: it is founded once so many have found each other",
		func(s *settings, v string) (err error) { s.Expect, err = strconv.Atoi(v); return plain(err) }},
	{"data-dir", "", "directory for log and state; none: a restarted controller is a new member, but over pebble:///dir it is dir/state",
		func(s *settings, v string) error { s.DataDir = v; return nil }},
	{"sync", "os", "with a data-dir: os survives a killed process, always (fsync) a power failure too",
		func(s *settings, v string) error { s.Sync = v; return nil }},
	{"consistency", "eventual", "consistency level: linearizable, sequential, causal or eventual",
		func(s *settings, v string) (err error) { s.Level, err = consistency.ParseLevel(v); return }},
	{"write-acks", "1", "at causal and eventual: controllers that must have a change before it is acknowledged, this one included; or all that are alive",
		func(s *settings, v string) (err error) {
			if v == "all" {
				s.WriteAcks = consistency.AllAcks
				return nil
			}
			if s.WriteAcks, err = strconv.Atoi(v); err != nil {
				err = fmt.Errorf("want a whole number or all, have %q", v)
			}
			return err
		}},
	{"max-skew", "5s", "at causal and eventual: a controller whose clock is farther from the median of all refuses writes",
		func(s *settings, v string) (err error) { s.MaxSkew, err = duration(v); return }},
	{"tombstone-max-age", "24h", "at causal and eventual: how long an absent controller keeps the others from forgetting what was deleted",
		func(s *settings, v string) (err error) { s.TombstoneMaxAge, err = duration(v); return }},
	{"backend", "embedded", "where bytes are kept: embedded, memcached://host:port[,host:port...], or pebble:///dir",
		func(s *settings, v string) error { s.Backend = v; return nil }},
	{"repair-rate", "64MiB", "bytes a second that are fetched from other controllers for a backend that has lost some; 0 is no limit",
		func(s *settings, v string) (err error) { s.RepairRate, err = size(v); return }},
	{"memory-limit", "1GiB", "memory for index and embedded values together; 0 is no limit",
		func(s *settings, v string) (err error) { s.MemoryLimit, err = size(v); return }},
	{"hot-cache", "64MiB", "memory for values that are read often, where they are kept outside this process, besides memory-limit; 0 is none",
		func(s *settings, v string) (err error) { s.HotCache, err = size(v); return }},
	{"max-item-size", "1MiB", "largest value a client may store, up to 128MiB",
		func(s *settings, v string) error {
			n, err := size(v)
			s.MaxItemSize = int(min(n, math.MaxInt32))
			return err
		}},
	{"max-conns", "10000", "client connections allowed at a time",
		func(s *settings, v string) (err error) { s.MaxConns, err = strconv.Atoi(v); return plain(err) }},
	{"threads", "0", "cores to use, and event loops that serve connections; 0 is all this process may have",
		func(s *settings, v string) (err error) { s.Threads, err = strconv.Atoi(v); return plain(err) }},
	{"idle-timeout", "0s", "close a connection on which nothing moved for this long; 0s never",
		func(s *settings, v string) (err error) { s.IdleTimeout, err = duration(v); return }},
	{"op-timeout", "1s", "how long a command may wait for other controllers or the backend before SERVER_ERROR; 0s forever",
		func(s *settings, v string) (err error) { s.OpTimeout, err = duration(v); return }},
	{"drain-timeout", "10s", "how long a stopping controller lets connections finish",
		func(s *settings, v string) (err error) { s.DrainTimeout, err = duration(v); return }},
	{"disable-flush-all", "false", "refuse flush_all",
		func(s *settings, v string) (err error) { s.DisableFlush, err = boolean(v); return }},
	{"enable-shutdown", "false", "let clients stop the controller with the shutdown command",
		func(s *settings, v string) (err error) { s.EnableShutdown, err = boolean(v); return }},
	{"enable-faults", "false", "let attune fault break the network of this controller, or its clock, for a time, to see what happens",
		func(s *settings, v string) (err error) { s.EnableFaults, err = boolean(v); return }},
	{"pprof", "false", "serve /debug/pprof on the admin address",
		func(s *settings, v string) (err error) { s.Pprof, err = boolean(v); return }},
	{"trace-endpoint", "", "URL of an OpenTelemetry collector (OTLP over HTTP) that gets traces, such as http://127.0.0.1:4318; none: off",
		func(s *settings, v string) error { s.TraceEndpoint = v; return nil }},
	{"trace-sample", "0.001", "fraction of commands that are traced at the controller which accepts them, 0 to 1",
		func(s *settings, v string) (err error) {
			if s.TraceSample, err = strconv.ParseFloat(v, 64); err != nil {
				err = fmt.Errorf("want a fraction such as 0.001, have %q", v)
			}
			return err
		}},
	{"log-level", "info", "debug, info, warn or error; PUT level=debug to /loglevel changes it later",
		func(s *settings, v string) (err error) {
			s.logLevel, err = zapcore.ParseLevel(v)
			if err != nil || s.logLevel > zapcore.ErrorLevel {
				err = fmt.Errorf("want debug, info, warn or error, have %q", v)
			}
			return
		}},
	{"log-format", "auto", "console, json, or auto: console on a terminal, json elsewhere",
		func(s *settings, v string) error {
			if v != "auto" && v != "console" && v != "json" {
				return fmt.Errorf("want auto, console or json, have %q", v)
			}
			s.logFormat = v
			return nil
		}},
	{"log-sample", "50:500", "first:every: of lines that say the same, the first so many of each second are written, then one in so many; errors always; off: all",
		func(s *settings, v string) (err error) { s.LogSample, err = logSample(v); return }},
}

func logSample(v string) (s controller.LogSample, err error) {
	if v == "off" {
		return s, nil
	}
	first, every, _ := strings.Cut(v, ":")
	s.First, err = strconv.Atoi(first)
	if err == nil {
		s.Every, err = strconv.Atoi(every)
	}
	if err != nil || s.First < 1 || s.Every < 0 {
		err = fmt.Errorf("want first:every, such as 50:500, or off, have %q", v)
	}
	return s, err
}

func list(v string) []string {
	var out []string
	for part := range strings.SplitSeq(v, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func size(v string) (int64, error) {
	n, err := humanize.ParseBytes(v)
	if err != nil || n > math.MaxInt64 {
		return 0, fmt.Errorf("want a size such as 64MiB or 1GiB, have %q", v)
	}
	return int64(n), nil
}

func duration(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil {
		return 0, fmt.Errorf("want a duration such as 500ms or 10s, have %q", v)
	}
	return d, nil
}

func boolean(v string) (bool, error) {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("want true or false, have %q", v)
	}
	return b, nil
}

// plain drops strconv's prefix from its errors.
func plain(err error) error {
	var num *strconv.NumError
	if errors.As(err, &num) {
		return fmt.Errorf("want a whole number, have %q", num.Num)
	}
	return err
}

// addFlags gives fs a flag per setting, and --config.
func addFlags(fs *pflag.FlagSet) {
	for _, s := range allSettings {
		if s.value == "false" {
			fs.Bool(s.key, false, s.usage)
			continue
		}
		fs.String(s.key, s.value, s.usage)
	}
	fs.String("config", "", "file of settings, see config.ini; the environment and flags override it")
}

// load resolves every setting: flag before environment before file before
// default. An error names the flag, variable, or file and line it is about.
func load(fs *pflag.FlagSet, environ []string) (settings, error) {
	s := settings{Config: controller.Default(), values: make(map[string]string), from: make(map[string]string)}
	codecs := viper.NewCodecRegistry()
	if err := codecs.RegisterCodec("ini", iniCodec{}); err != nil {
		return s, err
	}
	v := viper.NewWithOptions(viper.WithCodecRegistry(codecs))
	v.SetEnvPrefix("ATTUNE")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	if err := v.BindPFlags(fs); err != nil {
		return s, err
	}
	var lines map[string]int
	file := v.GetString("config")
	if s.file = file; file != "" {
		var err error
		if s.raw, err = os.ReadFile(file); err != nil {
			return s, fmt.Errorf("config: %w", err)
		}
		if lines, err = keyLines(file, s.raw); err != nil {
			return s, err
		}
		v.SetConfigType("ini")
		if err := v.ReadConfig(bytes.NewReader(s.raw)); err != nil {
			return s, fmt.Errorf("%s: %w", file, err)
		}
	}
	env, err := envNames(environ)
	if err != nil {
		return s, err
	}
	for _, st := range allSettings {
		s.values[st.key] = strings.TrimSpace(v.GetString(st.key))
		s.from[st.key] = origin(st.key, fs, env, file, lines)
		if err := st.set(&s, s.values[st.key]); err != nil {
			return s, fmt.Errorf("%s: %w", s.source(st.key), err)
		}
	}
	if err := s.Validate(); err != nil {
		// Validate names the setting; say where it came from, too.
		key, rest, _ := strings.Cut(err.Error(), ": ")
		return s, fmt.Errorf("%s: %s", s.source(key), rest)
	}
	return s, nil
}

// source says where the value of key came from, for an error about it.
func (s *settings) source(key string) string {
	switch from := s.from[key]; {
	case from == "default":
		return "--" + key + " (default)"
	case s.file != "" && strings.HasPrefix(from, s.file+":"):
		return from + ": " + key
	default:
		return from
	}
}

// origin says where the value of key came from.
func origin(key string, fs *pflag.FlagSet, env map[string]bool, file string, lines map[string]int) string {
	switch {
	case fs.Changed(key):
		return "--" + key
	case env[envName(key)]:
		return envName(key)
	case lines[key] > 0:
		return fmt.Sprintf("%s:%d", file, lines[key])
	}
	return "default"
}

func envName(key string) string {
	return "ATTUNE_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// envNames lists the ATTUNE_ variables that are set. One that is almost a
// setting is refused as a slip of the pen; others are left alone, because
// Kubernetes invents some for a service that is called attune.
func envNames(environ []string) (map[string]bool, error) {
	set := make(map[string]bool)
	valid := []string{envName("config")}
	for _, st := range allSettings {
		valid = append(valid, envName(st.key))
	}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "ATTUNE_") || value == "" {
			continue
		}
		set[name] = true
		if near, d := nearest(name, valid); d > 0 && d <= 2 {
			return nil, fmt.Errorf("%s: no such setting; did you mean %s?", name, near)
		}
	}
	return set, nil
}

// keyLines finds the line of every key of an INI file, and refuses what is not
// a setting.
func keyLines(file string, raw []byte) (map[string]int, error) {
	lines := make(map[string]int)
	var valid []string
	for _, st := range allSettings {
		valid = append(valid, st.key)
	}
	text := strings.TrimPrefix(string(raw), "\ufeff") // some editors of Windows begin with it
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		at := fmt.Sprintf("%s:%d", file, i+1)
		if line[0] == '[' {
			return nil, fmt.Errorf("%s: sections are not used here; write key = value", at)
		}
		key, _, found := strings.Cut(line, "=")
		key = strings.TrimSpace(key)
		if !found {
			return nil, fmt.Errorf("%s: want key = value, have %q", at, line)
		}
		if near, d := nearest(key, valid); d > 0 {
			return nil, fmt.Errorf("%s: no setting is called %q; did you mean %q?", at, key, near)
		}
		if first := lines[key]; first > 0 {
			return nil, fmt.Errorf("%s: %q was already set in line %d", at, key, first)
		}
		lines[key] = i + 1
	}
	return lines, nil
}

// iniCodec lets viper read flat INI files; it has no codec of its own for them.
type iniCodec struct{}

func (iniCodec) Decode(raw []byte, into map[string]any) error {
	f, err := ini.LoadSources(ini.LoadOptions{
		IgnoreInlineComment: true,
		IgnoreContinuation:  true, // a line is a setting: keyLines counts on it
		KeyValueDelimiters:  "=",
	}, raw)
	if err != nil {
		return err
	}
	for _, k := range f.Section("").Keys() {
		into[strings.ToLower(k.Name())] = k.Value()
	}
	return nil
}

// Encode is never used: attune does not write its configuration.
func (iniCodec) Encode(map[string]any) ([]byte, error) {
	return nil, errors.New("writing configuration is not supported")
}

// suggestFlag adds the nearest flag to the error about an unknown one.
func suggestFlag(cmd *cobra.Command, err error) error {
	name, ok := strings.CutPrefix(err.Error(), "unknown flag: --")
	if !ok {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	}
	var valid []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { valid = append(valid, f.Name) })
	near, _ := nearest(name, valid)
	return fmt.Errorf("%w; did you mean --%s? See %s --help", err, near, cmd.CommandPath())
}

// nearest is the candidate with the smallest edit distance from s.
func nearest(s string, candidates []string) (near string, distance int) {
	distance = math.MaxInt
	sorted := append([]string(nil), candidates...)
	sort.Strings(sorted)
	for _, c := range sorted {
		if d := editDistance(s, c); d < distance {
			near, distance = c, d
		}
	}
	return near, distance
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return row[len(b)]
}
