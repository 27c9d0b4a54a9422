package attunetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// NeedDocker skips the test if there is no Docker Engine that it may use.
func NeedDocker(t testing.TB) {
	t.Helper()
	if err := exec.Command("docker", "info").Run(); err != nil {
		t.Skip("needs Docker, and to be allowed to use it: ", err)
	}
}

// Docker runs a docker command, also when the test ends, and returns what it printed.
// If it fails, so does the test.
func Docker(t testing.TB, args ...string) string {
	t.Helper()
	return Output(t, exec.Command("docker", args...))
}

// Output runs a command and returns what it printed. If it fails, so does the test.
func Output(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%q: %v\n%s", cmd.Args, err, &errs)
	}
	return strings.TrimSpace(string(out))
}

// BuildImage makes an image of a directory with a Dockerfile. The test's end removes
// it.
func BuildImage(t testing.TB, tag, dir string) {
	t.Helper()
	Docker(t, "build", "-q", "-t", tag, dir)
	t.Cleanup(func() { Docker(t, "rmi", "-f", tag) })
}

// ImageFiles is a directory with the last stage of this repository's Dockerfile, for
// which no registry is needed, and what it copies: its attune is binary.
func ImageFiles(t testing.TB, binary string) string {
	t.Helper()
	tree, err := root()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(tree, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	_, stage, ok := strings.Cut(string(raw), "FROM scratch\n")
	if !ok {
		t.Fatal("the Dockerfile has no last stage FROM scratch")
	}
	stage = strings.ReplaceAll(strings.ReplaceAll(stage, "--from=build ", ""), "/src/", "")
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	WriteFile(t, filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\n"+stage))
	WriteFile(t, filepath.Join(dir, "bin", "attune"), program)
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// WriteFile writes a file that may be executed, and makes the folders above it.
func WriteFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
}
