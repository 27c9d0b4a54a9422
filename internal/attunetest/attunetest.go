package attunetest

import (
	"testing"
	"time"

	"github.com/attunekv/attune/internal/testbed"
)

// Patience is how long a test waits for what should come at once: enough for a
// busy machine under the race detector.
const Patience = testbed.Patience

// Eventually waits until cond holds, and fails the test if it does not within
// [Patience]. What names the condition in the failure.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", Patience, what)
		}
	}
}

// FreeAddr returns a loopback address that nobody listens on, another one each
// time. Somebody may take it before the caller does, but not for an outgoing
// connection: see testbed.FreeAddr.
func FreeAddr(t testing.TB) string {
	t.Helper()
	addr, err := testbed.FreeAddr("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
