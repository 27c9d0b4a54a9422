package attunetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// built is the program under test: once per process of tests, with the race
// detector if they have it.
var built struct {
	once      sync.Once
	dir, path string
	err       error
}

// Binary returns the path of attune: what the environment variable
// ATTUNE_TEST_BINARY names, else what is built from this tree, which
// [RemoveBinary] removes.
func Binary(t testing.TB) string {
	t.Helper()
	built.once.Do(func() { built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func build() (err error) {
	if built.path = os.Getenv("ATTUNE_TEST_BINARY"); built.path != "" {
		return nil
	}
	dir, err := root()
	if err != nil {
		return err
	}
	if built.dir, err = os.MkdirTemp("", "attune-binary-"); err != nil {
		return err
	}
	built.path = filepath.Join(built.dir, "attune")
	args := []string{"build", "-buildvcs=false", "-o", built.path}
	if raceDetector {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/attune")...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return nil
}

// root is the directory of this tree.
func root() (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(mod))), nil
}

// RemoveBinary removes what Binary built. For the end of a TestMain.
func RemoveBinary() {
	if built.dir != "" {
		_ = os.RemoveAll(built.dir) // the system clears its directory for temporary files
	}
}
