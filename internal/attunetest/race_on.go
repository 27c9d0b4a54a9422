//go:build race

package attunetest

// raceDetector says whether this process was built with it.
const raceDetector = true
