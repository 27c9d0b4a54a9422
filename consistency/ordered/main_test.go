package ordered

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain passes over memberlist's probes: its Shutdown does not wait for one that is
// under way, which may take a second more for an answer that never comes.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}
