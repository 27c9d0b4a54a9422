//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attunekv/attune/internal/attunetest"
)

// docker runs a docker command and returns what it printed.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("docker", args...) // also in Cleanup, where the context of the test has ended
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker %q: %v\n%s", args, err, &errs)
	}
	return strings.TrimSpace(string(out))
}

// TestImage builds the last stage of the Dockerfile, for which no registry is
// needed, around the binary under test.
func TestImage(t *testing.T) {
	if err := exec.Command("docker", "info").Run(); err != nil {
		t.Skip("needs Docker:", err)
	}
	raw, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	const built = "COPY --from=build /src/bin/attune "
	_, stage, ok := strings.Cut(string(raw), "FROM scratch\n")
	if !ok || !strings.Contains(stage, built) {
		t.Fatal("the Dockerfile has no last stage FROM scratch that copies the binary")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\n"+strings.Replace(stage, built, "COPY attune ", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(attune)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "attune"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	image := fmt.Sprintf("attune-test-%d", os.Getpid())
	docker(t, "build", "-q", "-t", image, dir)
	t.Cleanup(func() { docker(t, "rmi", "-f", image) })

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

func TestComposeFile(t *testing.T) {
	compose := []string{"docker-compose"}
	if _, err := exec.LookPath(compose[0]); err != nil {
		compose = []string{"docker", "compose"}
		if err := exec.Command("docker", "compose", "version").Run(); err != nil {
			t.Skip("needs docker-compose")
		}
	}
	args := append(compose[1:], "-f", "../../docker-compose.yml", "--profile", "attune", "config")
	out, err := exec.Command(compose[0], args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"11201", "11202", "11203", "memcached1:11211,memcached2:11211,memcached3:11211"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("docker-compose.yml comes to\n%s\nwithout %s", out, want)
		}
	}
}
