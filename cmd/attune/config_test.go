package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/controller"
)

const shippedConfig = "../../config.ini"

// resolve loads settings as `attune serve` does from a command line and an
// environment, which is a list of NAME=value.
func resolve(t *testing.T, args []string, environ ...string) (settings, error) {
	t.Helper()
	for _, kv := range environ { // viper reads the process's own
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	cmd := newServeCommand()
	cmd.SetArgs(args)
	if err := cmd.ParseFlags(args); err != nil {
		return settings{}, suggestFlag(cmd, err)
	}
	return load(cmd.Flags(), os.Environ())
}

// mustResolve is resolve for settings that are good.
func mustResolve(t *testing.T, args []string, environ ...string) settings {
	t.Helper()
	s, err := resolve(t, args, environ...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// file writes a configuration file and returns its path.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "attune.ini")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsOfFlagsAreThoseOfTheController(t *testing.T) {
	got := mustResolve(t, nil).Config
	if want := controller.Default(); !reflect.DeepEqual(bare(got), bare(want)) {
		t.Errorf("attune serve without flags runs\n%+v, controller.Default() is\n%+v", bare(got), bare(want))
	}
}

// bare leaves out what is an object and not a setting.
func bare(c controller.Config) controller.Config {
	c.Log, c.LogLevel, c.Settings = nil, nil, nil
	return c
}

func TestShippedConfigHoldsEverySettingDocumentedAtItsDefault(t *testing.T) {
	raw, err := os.ReadFile(shippedConfig)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	values := make(map[string]string)
	comment := false
	for _, line := range strings.Split(string(raw), "\n") {
		switch {
		case line == "":
			comment = false
		case strings.HasPrefix(line, "# "):
			comment = true
		default:
			key, value, found := strings.Cut(line, " =")
			value = strings.TrimSpace(value)
			if !found {
				t.Errorf("%q is not written key = value", line)
			}
			if !comment {
				t.Errorf("%s: no comment stands above it", key)
			}
			keys, values[key] = append(keys, key), value
		}
	}
	if len(keys) != len(allSettings) {
		t.Fatalf("config.ini has %d settings, want %d", len(keys), len(allSettings))
	}
	for i, st := range allSettings {
		if keys[i] != st.key {
			t.Errorf("setting %d of config.ini is %q, want %q", i, keys[i], st.key)
		}
		if values[st.key] != st.value {
			t.Errorf("%s is %q in config.ini, its default is %q", st.key, values[st.key], st.value)
		}
	}
	if got, want := mustResolve(t, []string{"--config", shippedConfig}), mustResolve(t, nil); !reflect.DeepEqual(
		bare(got.Config), bare(want.Config)) || got.logLevel != want.logLevel || got.logFormat != want.logFormat {
		t.Errorf("config.ini means\n%+v, no file means\n%+v", got, want)
	}
}

func TestEverySettingCanBeSetInThreeWays(t *testing.T) {
	other := map[string]string{
		"name": "n2", "listen": "127.0.0.1:1, unix:/tmp/a", "admin": "off", "consistency": "linearizability",
		"backend": "memcached://h:1,h:2?timeout=1s", "memory-limit": "2GiB", "repair-rate": "1MiB", "hot-cache": "0", "max-item-size": "2MiB",
		"max-conns": "7", "threads": "3", "idle-timeout": "1m", "op-timeout": "2s", "drain-timeout": "3s",
		"disable-flush-all": "true", "enable-shutdown": "true", "enable-faults": "true", "pprof": "true",
		"log-level": "debug", "log-format": "json", "log-sample": "off", "trace-endpoint": "http://h:4318", "trace-sample": "1",
		"peer": "127.0.0.1:1", "peer-advertise": "example.org:2", "gossip": "127.0.0.1:3", "join": "a:1, b:2",
		"expect": "3", "data-dir": "data", "sync": "always",
		"write-acks": "all", "max-skew": "1s", "tombstone-max-age": "1h",
		"admin-token-file": file(t, "s3cret\n"),
	}
	for _, st := range allSettings {
		t.Run(st.key, func(t *testing.T) {
			v, ok := other[st.key]
			if !ok {
				t.Fatal("this test has no second value for the setting")
			}
			var level []string
			if st.key == "data-dir" {
				level = []string{"--expect=3"} // a controller alone refuses it
			}
			base := mustResolve(t, level)
			flag := mustResolve(t, append(level, "--"+st.key+"="+v))
			ini := mustResolve(t, append(level, "--config", file(t, st.key+" = "+v+"\n")))
			env := mustResolve(t, level, envName(st.key)+"="+v)
			if reflect.DeepEqual(clean(flag), clean(base)) {
				t.Errorf("--%s=%s changes nothing", st.key, v)
			}
			if !reflect.DeepEqual(clean(ini), clean(flag)) {
				t.Errorf("in a file it means\n%+v, as a flag\n%+v", clean(ini), clean(flag))
			}
			if !reflect.DeepEqual(clean(env), clean(flag)) {
				t.Errorf("in the environment it means\n%+v, as a flag\n%+v", clean(env), clean(flag))
			}
		})
	}
}

func clean(s settings) settings {
	// Not where each came from, which differs.
	s.Config, s.values, s.from, s.file, s.raw = bare(s.Config), nil, nil, "", nil
	return s
}

func TestFlagOverEnvironmentOverFileOverDefault(t *testing.T) {
	path := file(t, "name = file\nmax-conns = 1\nop-timeout = 1m\n")
	s := mustResolve(t, []string{"--name", "flag", "--config", path},
		"ATTUNE_NAME=env", "ATTUNE_MAX_CONNS=2", "ATTUNE_DRAIN_TIMEOUT=") // an empty variable is none
	if s.Name != "flag" || s.MaxConns != 2 || s.OpTimeout != time.Minute || s.DrainTimeout != 10*time.Second {
		t.Errorf("have name %q (want the flag's), %d connections (the environment's 2), op timeout %v (the file's 1m), drain timeout %v (the default 10s)",
			s.Name, s.MaxConns, s.OpTimeout, s.DrainTimeout)
	}
	// The file itself may be named by a variable.
	if s := mustResolve(t, nil, "ATTUNE_NAME=", "ATTUNE_CONFIG="+path); s.Name != "file" {
		t.Errorf("with ATTUNE_CONFIG the name is %q, want the file's", s.Name)
	}
}

func TestFileFormsThatAreAccepted(t *testing.T) {
	s := mustResolve(t, []string{"--config", file(t,
		"\ufeff; a comment\r\n\r\n\tname=a;b#c  \r\nbackend = \"memcached://h:1?timeout=1s&max_idle=2\"\r\nlisten = 127.0.0.1:1 , unix:/tmp/a b\r\nadmin =\r\nconsistency = linearizability")})
	if s.Name != "a;b#c" || s.Backend != "memcached://h:1?timeout=1s&max_idle=2" || s.Admin != "" ||
		s.Level != consistency.Linearizable || !reflect.DeepEqual(s.Listen, []string{"127.0.0.1:1", "unix:/tmp/a b"}) {
		t.Errorf("read as %+v", bare(s.Config))
	}
	// A backslash is no continuation: the next line is a setting of its own.
	if s := mustResolve(t, []string{"--config", file(t, "name = a\\\nlog-format = json\n")}); s.Name != `a\` || s.logFormat != "json" {
		t.Errorf("name %q, log-format %q", s.Name, s.logFormat)
	}
}

func TestRefusalsNameTheirSourceAndTheNearestSetting(t *testing.T) {
	for _, c := range []struct {
		name string
		file string
		args []string
		env  string
		want string // FILE stands for the path of the file
	}{
		{name: "unknown key", file: "# c\n\nnmae = x\n", want: `FILE:3: no setting is called "nmae"; did you mean "name"?`},
		{name: "key of another case", file: "Name = x\n", want: `FILE:1: no setting is called "Name"; did you mean "name"?`},
		{name: "key twice", file: "name = x\nname = y\n", want: `FILE:2: "name" was already set in line 1`},
		{name: "section", file: "[serve]\nname = x\n", want: `FILE:1: sections are not used here; write key = value`},
		{name: "no equals sign", file: "pprof\n", want: `FILE:1: want key = value, have "pprof"`},
		{name: "colon for equals sign", file: "name: x\n", want: `FILE:1: want key = value, have "name: x"`},
		{name: "bad value in a file", file: "name = x\nmax-conns = many\n", want: `FILE:2: max-conns: want a whole number, have "many"`},
		{name: "value out of range in a file", file: "max-conns = 0\n", want: `FILE:1: max-conns: want at least 1, have 0`},
		{name: "comment behind a value", file: "op-timeout = 1s # short\n", want: `FILE:1: op-timeout: want a duration such as 500ms or 10s, have "1s # short"`},
		{name: "no such file", args: []string{"--config", "/nowhere/a.ini"}, want: `config: open /nowhere/a.ini: no such file or directory`},

		{name: "bad value in the environment", env: "ATTUNE_MEMORY_LIMIT=lots", want: `ATTUNE_MEMORY_LIMIT: want a size such as 64MiB or 1GiB, have "lots"`},
		{name: "near miss in the environment", env: "ATTUNE_MEMRY_LIMIT=1GiB", want: `ATTUNE_MEMRY_LIMIT: no such setting; did you mean ATTUNE_MEMORY_LIMIT?`},
		{name: "environment over file", file: "pprof = true\n", env: "ATTUNE_PPROF=maybe", want: `ATTUNE_PPROF: want true or false, have "maybe"`},

		{name: "unknown flag", args: []string{"--memroy-limit", "1GiB"}, want: `unknown flag: --memroy-limit; did you mean --memory-limit? See serve --help`},
		{name: "flag without value", args: []string{"--listen"}, want: `flag needs an argument: --listen; see serve --help`},
		{name: "flag over environment", args: []string{"--max-conns", "-1"}, env: "ATTUNE_MAX_CONNS=1", want: `--max-conns: want at least 1, have -1`},
		{name: "blank name", args: []string{"--name", "a b"}, want: `--name: want 1 to 64 characters without blanks, have "a b"`},
		{name: "no address", args: []string{"--listen", ","}, want: `--listen: want at least one address, such as 127.0.0.1:8000 or unix:/run/attune.sock`},
		{name: "port alone", args: []string{"--listen", "8000"}, want: `--listen: "8000" is not host:port: address 8000: missing port in address`},
		{name: "no socket path", args: []string{"--listen", "unix:"}, want: `--listen: "unix:" has no path, such as unix:/run/attune.sock`},
		{name: "bad admin address", args: []string{"--admin", "none"}, want: `--admin: "none" is not host:port: address none: missing port in address`},
		{name: "unknown level", args: []string{"--consistency", "evental"}, want: `--consistency: unknown consistency level "evental": choose linearizable, sequential, causal or eventual`},
		{name: "no acknowledgement", args: []string{"--write-acks", "0"}, want: `--write-acks: want 1 or more, or all, have 0`},
		{name: "word for acknowledgements", args: []string{"--write-acks", "most"}, want: `--write-acks: want a whole number or all, have "most"`},
		{name: "acknowledgements of nobody", args: []string{"--write-acks", "2"}, want: `--write-acks: 2 controllers are to have each change, and this one is alone: set expect or join, or leave this out`},
		{name: "no skew", args: []string{"--max-skew", "0s", "--expect", "3"}, want: `--max-skew: want 10ms to 1h, have 0s`},
		{name: "any skew", args: []string{"--max-skew", "2h"}, want: `--max-skew: want 10ms to 1h, have 2h0m0s`},
		{name: "short memory of the dead", file: "expect = 3\ntombstone-max-age = 1s\n", want: `FILE:2: tombstone-max-age: want at least 1m, have 1s`},
		{name: "word for sync", args: []string{"--expect", "3", "--sync", "never"}, want: `--sync: want os or always, have "never"`},
		{name: "peer port of a cluster", args: []string{"--join", "127.0.0.1:1", "--peer", "7400"}, want: `--peer: want host:port, have "7400"`},
		{name: "peers told a socket", args: []string{"--expect", "3", "--peer-advertise", "unix:/run/peer.sock"}, want: `--peer-advertise: want host:port, have "unix:/run/peer.sock"`},
		{name: "peers told no host", args: []string{"--expect", "3", "--peer-advertise", ":7400"}, want: `--peer-advertise: want host:port, have ":7400"`},
		{name: "joining no host", args: []string{"--join", "127.0.0.1:1,:7946"}, want: `--join: want host:port of each, have ":7946"`},
		{name: "joining a socket", args: []string{"--join", "unix:/run/gossip.sock"}, want: `--join: want host:port of each, have "unix:/run/gossip.sock"`},
		{name: "little memory", args: []string{"--memory-limit", "1MiB"}, want: `--memory-limit: want 0 (none) or at least 8MiB, have 1048576 bytes`},
		{name: "little hot cache", args: []string{"--hot-cache", "1KiB"}, want: `--hot-cache: want 0 (none) or 1MiB to 1TiB, have 1024 bytes`},
		{name: "negative memory", args: []string{"--memory-limit", "-1"}, want: `--memory-limit: want a size such as 64MiB or 1GiB, have "-1"`},
		{name: "huge item", args: []string{"--max-item-size", "129MiB"}, want: `--max-item-size: want 1KiB to 128MiB, have 135266304 bytes`},
		{name: "item of half the memory", args: []string{"--max-item-size", "9MiB", "--memory-limit", "16MiB"}, want: `--max-item-size: 9437184 bytes is more than half of memory-limit (16777216)`},
		{name: "negative duration", args: []string{"--idle-timeout", "-1s"}, want: `--idle-timeout: want a duration of 0 or more, have -1s`},
		{name: "collector without http", args: []string{"--trace-endpoint", "127.0.0.1:4317"}, want: `--trace-endpoint: want the URL of a collector, such as http://127.0.0.1:4318, have "127.0.0.1:4317"`},
		{name: "collector with a password", args: []string{"--trace-endpoint", "https://u:p@h"}, want: `--trace-endpoint: want the URL of a collector, such as http://127.0.0.1:4318, without a password, which anybody could read at /config: a collector on this machine can pass traces on with one`},
		{name: "percents of traces", args: []string{"--trace-sample", "1%"}, want: `--trace-sample: want a fraction such as 0.001, have "1%"`},
		{name: "more traces than commands", args: []string{"--trace-sample", "2"}, want: `--trace-sample: want a fraction of the commands, 0 to 1, have 2`},
		{name: "no number of traces", args: []string{"--trace-sample", "NaN"}, want: `--trace-sample: want a fraction of the commands, 0 to 1, have NaN`},
		{name: "half a log sample", args: []string{"--log-sample", "50"}, want: `--log-sample: want first:every, such as 50:500, or off, have "50"`},
		{name: "no first line", args: []string{"--log-sample", "0:5"}, want: `--log-sample: want first:every, such as 50:500, or off, have "0:5"`},
		{name: "unknown log level", args: []string{"--log-level", "fatal"}, want: `--log-level: want debug, info, warn or error, have "fatal"`},
		{name: "unknown log format", args: []string{"--log-format", "xml"}, want: `--log-format: want auto, console or json, have "xml"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			args, path := c.args, ""
			if c.file != "" {
				path = file(t, c.file)
				args = append(args, "--config", path)
			}
			var environ []string
			if c.env != "" {
				environ = []string{c.env}
			}
			_, err := resolve(t, args, environ...)
			if err == nil {
				t.Fatal("accepted")
			}
			if want := strings.ReplaceAll(c.want, "FILE", path); err.Error() != want {
				t.Errorf("refused with\n  %v, want\n  %s", err, want)
			}
		})
	}
}

// Kubernetes gives every pod these for a service called attune.
func TestEnvironmentOfKubernetesIsLeftAlone(t *testing.T) {
	got := mustResolve(t, nil,
		"ATTUNE_SERVICE_HOST=10.0.0.1",
		"ATTUNE_SERVICE_PORT=8000",
		"ATTUNE_SERVICE_PORT_ADMIN=9090",
		"ATTUNE_SERVICE_PORT_MEMCACHE=8000",
		"ATTUNE_PORT=tcp://10.0.0.1:8000",
		"ATTUNE_PORT_8000_TCP=tcp://10.0.0.1:8000",
		"ATTUNE_PORT_8000_TCP_ADDR=10.0.0.1",
		"ATTUNE_PORT_8000_TCP_PORT=8000",
		"ATTUNE_PORT_8000_TCP_PROTO=tcp",
		"ATTUNE_PORT_9090_TCP=tcp://10.0.0.1:9090",
	)
	if want := controller.Default(); !reflect.DeepEqual(bare(got.Config), bare(want)) {
		t.Errorf("they change the settings to %+v", bare(got.Config))
	}
}

func TestEverySettingHasAFlagThatSaysWhatItIs(t *testing.T) {
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	addFlags(fs)
	for _, st := range allSettings {
		f := fs.Lookup(st.key)
		if f == nil || f.Usage != st.usage || f.DefValue != st.value {
			t.Errorf("--%s: flag %+v, want usage %q and default %q", st.key, f, st.usage, st.value)
		}
	}
}

// Two ways to say that there are others, at two levels; and everything else.
func TestWhoIsAlone(t *testing.T) {
	for _, c := range []struct {
		args  string
		alone bool
	}{
		{"", true},
		{"--consistency=causal", true},
		{"--consistency=causal --write-acks=all", true},
		{"--expect=2", false},
		{"--join=127.0.0.1:7946", false},
		{"--consistency=causal --expect=3 --write-acks=2", false},
		{"--consistency=linearizable", false},
		{"--consistency=sequential", false},
	} {
		if s := mustResolve(t, strings.Fields(c.args)); s.Alone() != c.alone {
			t.Errorf("attune serve %s: alone is %v", c.args, s.Alone())
		}
	}
	if s := mustResolve(t, []string{"--write-acks=all"}); s.WriteAcks != consistency.AllAcks {
		t.Errorf("all is %d", s.WriteAcks)
	}
}
