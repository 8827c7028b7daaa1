# What rsnet may do in Consul, and nothing else. With another prefix than `rsnet` in RSNET_STORE, change it here too.
#
#   consul acl policy create -name rsnet -rules @consul-policy.hcl
#   consul acl token create -description 'rsnet' -policy-name rsnet

# everything that hosts tell each other, and the record format
key_prefix "rsnet/" {
  policy = "write"
}

# the hosts' leases: each belongs to the node of the agent that was asked, and any host may end one that another left behind
session_prefix "" {
  policy = "write"
}
