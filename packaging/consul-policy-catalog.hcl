# What rsnet may do in Consul besides, with RSNET_CATALOG=on alone: say which services its containers are. Services have the names of
# containers, so it is all names. With another prefix than `rsnet` in RSNET_STORE, change `rsnet-` too.
#
#   consul acl policy create -name rsnet-catalog -rules @consul-policy-catalog.hcl
#   consul acl token update -id … -merge-policies -policy-name rsnet-catalog

# the nodes rsnet-HOST that the services are of
node_prefix "rsnet-" {
  policy = "write"
}

service_prefix "" {
  policy = "write"
}
