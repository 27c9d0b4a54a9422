//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// TestImage builds the last stage of the Dockerfile, for which no registry is
// needed, around the binary under test.
func TestImage(t *testing.T) {
	attunetest.NeedDocker(t)
	docker := attunetest.Docker
	image := fmt.Sprintf("attune-test-%d", os.Getpid())
	attunetest.BuildImage(t, image, attunetest.ImageFiles(t, attune))

	if out := docker(t, "run", "--rm", image, "version"); !strings.HasPrefix(out, "attune v1.2.3-test ") {
		t.Errorf("version in a container: %q", out)
	}
	id := docker(t, "run", "-d", "--read-only", "--cap-drop", "ALL", "-p", "127.0.0.1::8000", image)
	t.Cleanup(func() { docker(t, "rm", "-f", id) })
	attunetest.Eventually(t, "the health check", func() bool {
		state := docker(t, "inspect", "-f", "{{.State.Status}} {{.State.Health.Status}}", id)
		if state == "running unhealthy" || strings.HasPrefix(state, "exited") {
			t.Fatalf("the container is %s:\n%s\n%s", state, docker(t, "inspect", "-f", "{{json .State}}", id), docker(t, "logs", id))
		}
		return state == "running healthy"
	})
	if user := docker(t, "top", id, "-o", "pid,uid"); !strings.Contains(user, "65532") {
		t.Errorf("it runs as %q, want user 65532", user)
	}
	c := dial(t, "tcp", docker(t, "port", id, "8000/tcp"))
	c.send("set k 0 0 1\r\n1\r\nincr k 1\r\n")
	c.expect("STORED\r\n2\r\n")

	docker(t, "stop", "-t", "20", id)
	if code := docker(t, "inspect", "-f", "{{.State.ExitCode}}", id); code != "0" {
		t.Errorf("docker stop ends it with status %s:\n%s", code, docker(t, "logs", id))
	}
}

// composeService and composeVariable are lines of what docker-compose config
// prints.
var (
	composeService  = regexp.MustCompile(`^  (\w+):$`)
	composeVariable = regexp.MustCompile(`^      (ATTUNE_\w+): (.*)$`)
)

// TestComposeFile holds the controllers of docker-compose.yml to what attune
// accepts, and to each other.
func TestComposeFile(t *testing.T) {
	compose := []string{"docker-compose"}
	if _, err := exec.LookPath(compose[0]); err != nil {
		compose = []string{"docker", "compose"}
		if err := exec.Command("docker", "compose", "version").Run(); err != nil {
			t.Skip("needs docker-compose")
		}
	}
	args := append(compose[1:], "-f", "../../docker-compose.yml", "--profile", "attune", "config")
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) {
			cmd := exec.Command(compose[0], args...)
			cmd.Env = append(os.Environ(), "CONSISTENCY=")
			if level != consistency.Linearizable {
				cmd.Env = append(cmd.Env, "CONSISTENCY="+level.String())
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			checkCompose(t, out, level)
		})
	}
}

// checkCompose looks at what docker-compose makes of the file.
func checkCompose(t *testing.T, out []byte, level consistency.Level) {
	for _, want := range []string{"11201", "11202", "11203", "8000", "8001", "8002", "9090", "9091", "9092"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("docker-compose.yml comes to\n%s\nwithout port %s", out, want)
		}
	}
	environ := make(map[string][]string)
	service := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		if m := composeService.FindStringSubmatch(line); m != nil {
			service = m[1]
		} else if m := composeVariable.FindStringSubmatch(line); m != nil {
			environ[service] = append(environ[service], m[1]+"="+strings.Trim(m[2], `"'`))
		}
	}
	for i := range 3 {
		name := fmt.Sprintf("attune%d", i+1)
		t.Run(name, func(t *testing.T) {
			s := mustResolve(t, nil, environ[name]...)
			if s.Name != name || s.Backend != fmt.Sprintf("memcached://memcached%d:11211", i+1) || s.Level != level || s.Expect != 3 {
				t.Errorf("%q come to %s, %s, %v, expecting %d", environ[name], s.Name, s.Backend, s.Level, s.Expect)
			}
			if want := []string{"attune1:7946", "attune2:7946", "attune3:7946"}; !slices.Equal(s.Join, want) {
				t.Errorf("it joins %q, want %q", s.Join, want)
			}
			for _, a := range []string{s.Peer, s.Gossip} {
				if !strings.HasPrefix(a, "0.0.0.0:") {
					t.Errorf("it listens for the others on %s, which they do not reach in a container of their own", a)
				}
			}
		})
	}
}
