// Package etcd keeps an arbiter's records in an etcd v3 cluster, for sites that have one: many hosts, or a Kubernetes control plane that isn't itself
// run by the VMs it decides on.
//
// It is a module of its own, so that users of the library don't inherit etcd's dependencies.
//
// # What it stores
//
// One key for each VM, PREFIX + id, holding the record as JSON. A change is one transaction that compares the key's revision with the
// one [arbiter.Decide] was asked about. Reads are linearizable. There are no leases: a record that ended by itself would let two copies go on.
//
// # What it trusts
//
// etcd knows users, not nodes: any client with write access to the prefix could write any record. Give each cluster of nodes a user with a role for
// the prefix only, and TLS. (Where the servers demand client certificates and no username is set, etcd takes the certificate's common name as
// the user.) A cluster that was rebuilt or restored from a backup has forgotten decisions; a rebuilt one is noticed if
// [Options.ClusterID] is set ([ErrOtherCluster]), a restored one by its generations: they are behind what the node knows. See etcd's
// documentation on restoring with a bumped revision, which does not help here.
//
// # Errors
//
// Everything that leaves open what happened is [arbiter.ErrUnreachable]: no quorum, no leader, timeouts, wrong certificates, no permission.
//
// # Concurrency
//
// All methods may be called concurrently.
package etcd
