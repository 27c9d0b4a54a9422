// Package verify tests what a cluster promises: it has clients work on all controllers,
// writes down what they see, and judges that by the cluster's level.
//
// [Discover] asks a cluster who its controllers are and of what level. [Run] runs the
// workloads of package history beside each other, under a prefix that nobody else has,
// waits until the controllers have settled, judges, and removes its keys. With a
// [Local] cluster, which it may mistreat, something is broken all the time, by a
// schedule that the seed repeats, and mended before the next. The [Report] says what
// was found: as text, JSON or a page.
//
// [SelfTest] does the same to stores that are broken on purpose, and fails if it does
// not find out.
package verify
