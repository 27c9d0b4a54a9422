package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/testbed"
)

// TestContainers starts the cluster of docker-compose.yml and breaks it as people do
// who run containers. Its clients know all controllers. Those that are stopped in
// order, and memcacheds that come back empty, cost no client anything; those that
// are killed, or cut off, at most the writes that were under way there.
func TestContainers(t *testing.T) {
	images := buildImages(t)
	upgraded := func(f *fleet) {
		f.upgrade()
		f.replaceMemcached("memcached2")
	}
	broken := func(f *fleet) {
		f.killed("attune3")
		f.paused("attune1")
		f.unplugged("attune2")
	}
	both := func(f *fleet) {
		for range 3 {
			upgraded(f)
			broken(f)
		}
	}
	voyages := []voyage{{linearizable, false, upgraded}, {eventual, false, broken}}
	if long {
		voyages = []voyage{{linearizable, false, both}, {sequential, true, both}, {causal, true, both}, {eventual, false, both}}
	}
	for i, v := range voyages {
		t.Run(fmt.Sprint(i, " ", v.level), func(t *testing.T) {
			t.Parallel()
			f := startFleet(t, images, i, v)
			v.faults(f)
			f.finish()
		})
	}
}

// voyage is what happens to a fleet.
type voyage struct {
	level  string
	data   bool // log and state are in volumes
	faults func(f *fleet)
}

// images are what a fleet is started from.
type images struct {
	versions  []string // tags of the image attune
	memcached string
}

// buildImages makes images of this tree, and of the memcached of this machine,
// for which no registry is needed.
func buildImages(t *testing.T) images {
	t.Helper()
	attunetest.NeedDocker(t)
	if _, err := composeCommand(); err != nil {
		t.Skip("needs docker-compose: ", err)
	}
	memcached, err := testbed.FindMemcached()
	if err != nil {
		t.Skip("needs memcached: ", err)
	}
	im := images{memcached: fmt.Sprintf("attune-test-memcached:%d", os.Getpid())}
	for i := range 2 {
		tag := fmt.Sprintf("test-%d-%d", os.Getpid(), i+1)
		attunetest.BuildImage(t, "attune:"+tag, attuneFiles(t, tag))
		im.versions = append(im.versions, tag)
	}
	attunetest.BuildImage(t, im.memcached, memcachedFiles(t, memcached))
	return im
}

// attuneFiles is a directory with what the last stage of the Dockerfile copies, for a
// version.
func attuneFiles(t *testing.T, version string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "attune")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version="+version, "-o", binary, "../cmd/attune")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return attunetest.ImageFiles(t, binary)
}

// library is a file that ldd names.
var library = regexp.MustCompile(`/\S+`)

// memcachedFiles is a directory with a memcached, what its health check runs, and
// the libraries of both.
func memcachedFiles(t *testing.T, memcached string) string {
	t.Helper()
	dir := t.TempDir()
	files := make(map[string]string) // where they are to be, and where they are
	for name, program := range map[string]string{"memcached": memcached, "bash": "bash", "sh": "bash", "grep": "grep"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skip("needs " + program)
		}
		files["/bin/"+name] = path
		libraries, err := exec.Command("ldd", path).Output()
		if err != nil {
			t.Skipf("needs to know the libraries of %s: ldd: %v", path, err)
		}
		for _, l := range library.FindAllString(string(libraries), -1) {
			files[l] = l
		}
	}
	for name, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		attunetest.WriteFile(t, filepath.Join(dir, "root", name), raw)
	}
	attunetest.WriteFile(t, filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY root /\nUSER 65532\nENV PATH=/bin\n"))
	return dir
}

// composeCommand is docker-compose, or the plugin that took its place.
func composeCommand() ([]string, error) {
	if _, err := exec.LookPath("docker-compose"); err == nil {
		return []string{"docker-compose"}, nil
	}
	return []string{"docker", "compose"}, exec.Command("docker", "compose", "version").Run()
}

// fleet is the cluster of docker-compose.yml under a project, an address and image
// tags of its own, and clients that use it all the time.
type fleet struct {
	*stage
	voyage
	project string
	host    string // a loopback address that is nobody else's
	version string // the tag that services are started with
	next    string // the one they are upgraded to
	images  images
	files   []string
	users   *users
}

func startFleet(t *testing.T, im images, i int, v voyage) *fleet {
	t.Helper()
	f := &fleet{
		voyage:  v,
		project: fmt.Sprintf("attune-test-%d-%d", os.Getpid(), i),
		host:    fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 1+rand.IntN(254)),
		version: im.versions[0],
		next:    im.versions[1],
		images:  im,
		files:   []string{"-f", "../docker-compose.yml"},
	}
	if v.data {
		f.files = append(f.files, "-f", "../docker-compose.data.yml")
	}
	f.stage = &stage{Cluster: &attunetest.Cluster{Cluster: new(testbed.Cluster)}, t: t}
	for i := range 3 {
		f.Nodes = append(f.Nodes, &attunetest.Controller{Controller: &testbed.Controller{
			Name:   fmt.Sprintf("attune%d", i+1),
			Listen: fmt.Sprintf("%s:%d", f.host, 8000+i),
			Admin:  fmt.Sprintf("%s:%d", f.host, 9090+i),
		}})
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs := filepath.Join(os.TempDir(), f.project+".log")
			_ = os.WriteFile(logs, []byte(f.compose("logs", "--no-color", "-t")), 0o644)
			t.Log("the log of all containers is in " + logs)
		}
		f.compose("down", "-v", "-t", "5")
	})
	f.compose("up", "-d")
	f.healthy("memcached1", "memcached2", "memcached3", "attune1", "attune2", "attune3")
	if t.Failed() {
		t.FailNow()
	}
	f.users = startUsers(t, f)
	return f
}

// compose runs a docker-compose command.
func (f *fleet) compose(args ...string) string {
	f.t.Helper()
	line, _ := composeCommand()
	line = append(append(line, f.files...), "-p", f.project, "--profile", "attune")
	line = append(line, args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(), "CONSISTENCY="+f.level, "VERSION="+f.version, "PUBLISH="+f.host, "MEMCACHED_IMAGE="+f.images.memcached)
	return attunetest.Output(f.t, cmd)
}

func (f *fleet) container(service string) string {
	f.t.Helper()
	const label = "label=com.docker.compose."
	return attunetest.Docker(f.t, "ps", "-aq", "--filter", label+"project="+f.project, "--filter", label+"service="+service)
}

func (f *fleet) inspect(id, format string) string {
	f.t.Helper()
	return attunetest.Docker(f.t, "inspect", "-f", format, id)
}

// healthy waits until services are, by their health checks.
func (f *fleet) healthy(services ...string) {
	f.t.Helper()
	for _, service := range services {
		id := f.container(service)
		attunetest.Eventually(f.t, service+" is healthy", func() bool {
			time.Sleep(50 * time.Millisecond)
			return f.inspect(id, "{{.State.Health.Status}}") == "healthy"
		})
	}
}

// phase runs a fault, and says which of the commands that failed meanwhile may.
func (f *fleet) phase(name string, may func(failure) bool, fault func()) {
	f.t.Helper()
	began, from := time.Now(), f.users.now()
	fault()
	f.progress("after " + name)
	asked, failed := f.users.since(from)
	f.t.Logf("%s: %v, %d commands, %d failed", name, time.Since(began).Round(100*time.Millisecond), asked, len(failed))
	for _, x := range failed {
		if may(x) {
			f.t.Logf("%s: %v", name, x)
		} else {
			f.t.Errorf("%s: %v", name, x)
		}
	}
}

// progress waits until all clients are answered.
func (f *fleet) progress(when string) {
	f.t.Helper()
	begin := f.users.answers()
	attunetest.Eventually(f.t, "all clients are answered "+when, func() bool {
		for i, n := range f.users.answers() {
			if n < begin[i]+10 {
				return false
			}
		}
		return true
	})
}

func none(failure) bool { return false }

// upgrade gives the controllers another image, one after the other. Nobody notices.
func (f *fleet) upgrade() {
	f.t.Helper()
	f.version, f.next = f.next, f.version
	for _, n := range f.Nodes {
		f.phase("upgrade of "+n.Name, none, func() {
			f.compose("up", "-d", "--no-deps", n.Name)
			f.healthy(n.Name)
		})
		if stats, err := n.Stats(""); err != nil || stats["attune_version"] != f.version {
			f.t.Errorf("%s runs version %q, want %q: %v", n.Name, stats["attune_version"], f.version, err)
		}
	}
}

// replaceMemcached puts an empty one in its place.
func (f *fleet) replaceMemcached(service string) {
	f.t.Helper()
	f.phase("an empty "+service, none, func() {
		f.compose("up", "-d", "--no-deps", "--force-recreate", service)
		f.healthy(service)
	})
}

// unknown says that a command may fail: a write that was under way, and of which
// nobody can know whether it was done.
func unknown(x failure) bool {
	return x.op.Kind != history.Get && x.unknown
}

// killed kills a controller, which Docker starts again.
func (f *fleet) killed(service string) {
	f.t.Helper()
	f.phase("kill of "+service, unknown, func() {
		id := f.container(service)
		pid, err := strconv.Atoi(f.inspect(id, "{{.State.Pid}}"))
		if err != nil || pid <= 1 {
			f.t.Errorf("process of %s: %d, %v", service, pid, err)
			return
		}
		restarts, err := strconv.Atoi(f.inspect(id, "{{.RestartCount}}"))
		if err != nil {
			f.t.Error(err)
			return
		}
		f.losses = append(f.losses, history.Loss{Node: service, At: f.users.now(), Kept: f.data})
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil { // docker kill would keep it down
			f.t.Error(err)
			return
		}
		attunetest.Eventually(f.t, service+" is started again", func() bool {
			time.Sleep(50 * time.Millisecond)
			return f.inspect(id, "{{.RestartCount}} {{.State.Health.Status}}") == fmt.Sprint(restarts+1, " healthy")
		})
	})
}

// paused stops a controller for a while that is longer than everybody's patience.
func (f *fleet) paused(service string) {
	f.t.Helper()
	f.phase("pause of "+service, unknown, func() {
		id := f.container(service)
		attunetest.Docker(f.t, "pause", id)
		pause(f.t, 4*time.Second)
		attunetest.Docker(f.t, "unpause", id)
		f.healthy(service)
	})
}

// unplugged takes a controller from the network for a while.
func (f *fleet) unplugged(service string) {
	f.t.Helper()
	f.phase(service+" unplugged", unknown, func() {
		id, network := f.container(service), f.project+"_default"
		attunetest.Docker(f.t, "network", "disconnect", network, id)
		pause(f.t, 4*time.Second)
		attunetest.Docker(f.t, "network", "connect", "--alias", service, network, id)
		n := f.Node(service)
		attunetest.Eventually(f.t, service+" is ready", func() bool { return n.Ready() == nil })
		f.healthy(service)
	})
}

// finish ends the clients, and checks what they saw, and that what was acknowledged is
// there, on all controllers.
func (f *fleet) finish() {
	f.t.Helper()
	f.healthy("attune1", "attune2", "attune3")
	h, sets := f.users.stop()
	f.t.Logf("%d commands, %d of them answered; %d unique sets", len(h), h.Answered(), len(sets))
	trial := history.Trial{Level: f.level, History: h, Process: history.ByClient, Patience: time.Minute, Dir: os.TempDir()}
	if history.Leaderless(f.level) {
		f.rec = f.users.rec
		trial.Rules.MayLose = f.mayLose
		f.surveyOf(f.Nodes, sets.Keys())
		sv := f.surveyOf(f.Nodes, h.Keys())
		trial.Final = &sv
		sets = slices.DeleteFunc(sets, f.mayLose)
	}
	for _, found := range trial.Judge() {
		if found.Err != nil {
			f.t.Errorf("%s: %v", found.Check, found.Err)
		}
	}
	f.kept(sets)
	for _, n := range f.Nodes {
		if status := f.inspect(f.container(n.Name), "{{.State.OOMKilled}} {{.State.ExitCode}}"); status != "false 0" {
			f.t.Errorf("%s: %s", n.Name, status)
		}
	}
}

// failure is a command that a client got no answer to.
type failure struct {
	op      history.Op
	client  int
	err     error
	unknown bool // it may have been executed
	began   time.Time
	took    time.Duration
}

func (x failure) String() string {
	return fmt.Sprintf("client %d: %v, begun at %s, failed after %v: %v", x.client, x.op, x.began.UTC().Format("15:04:05.000"), x.took.Round(time.Millisecond), x.err)
}
