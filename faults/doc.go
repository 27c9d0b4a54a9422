// Package faults holds tests that start clusters of real controllers, break
// something, and check what clients saw while it was broken.
//
// Each test is a row of a matrix: a fault, the consistency level, what is stored
// where, and what clients do meanwhile. The fault comes from outside of the
// controllers: a signal, a network that loses or holds frames, a backend that is
// killed. Only a wrong clock is what they make themselves believe (see attune fault),
// as no process can be given one of its own. What clients saw is judged by package history; besides, in every row
// all sets that were acknowledged must be there at the end, no controller may
// panic, have a data race or end by itself, and the cluster must serve again once
// the fault is gone.
//
// The rows of the causal and eventual levels, whose controllers need no leader, are
// in the files that begin with replicas. There, besides, all controllers must agree
// within 5 s after the last write, and on the right thing; none may stop answering
// because of others; and what a killed controller without a disk acknowledged within
// its last second may be lost.
//
// TestContainers is apart from the matrix: the cluster of docker-compose.yml, upgraded
// under load and broken, with clients that know all controllers. It needs a Docker
// Engine, docker-compose and memcached, and no registry.
//
// TestPage and TestPageOfAPartition are apart from it, too: they look at the web page of
// clusters in trouble, with Chromium, and take its pictures (make screenshots).
//
// go test runs the short matrix, about two minutes of it. With ATTUNE_FAULTS=long in
// the environment all rows run, for longer and at more levels; so does
//
//	make faults
//
// What stores outside of the controllers do is in stores_test.go and backend_test.go.
//
// The rows that need networks of their own (Linux network namespaces) or another
// boot id skip where the tests do not run as root.
//
// When a row fails, its log has the story of what cannot have happened, a drawing
// of it, and where the logs and data of the controllers are. The seed it prints
// repeats what clients ask and what the network loses, though not the timing:
// ATTUNE_FAULTS_SEED=n.
package faults
